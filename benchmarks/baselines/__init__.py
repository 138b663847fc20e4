"""The inner loop as others write it: what every speed figure is a ratio to."""
