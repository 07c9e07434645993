"""The small checkpoint that ships with the package, and the text that goes with it."""
