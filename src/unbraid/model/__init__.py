"""The encoder, its heads, and how they are read and written."""
