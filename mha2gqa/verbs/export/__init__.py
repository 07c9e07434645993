"""`mha2gqa export`."""
