"""`mha2gqa inspect`."""
