"""Text to token ids and batches."""
