"""`mha2gqa expand`."""
