"""Heads of attention, free of any family's way to store them."""
