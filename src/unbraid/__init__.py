"""DeBERTa, complete, exact and fast."""
