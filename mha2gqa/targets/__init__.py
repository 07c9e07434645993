"""What attention shall become, and everything that is done for it."""
