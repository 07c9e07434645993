"""`mha2gqa demo`."""
