"""`mha2gqa convert`."""
