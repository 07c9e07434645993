"""Models: what is known of one, and how it is loaded and run."""
