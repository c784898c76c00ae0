"""Corpora, masking and the pretraining objectives."""
