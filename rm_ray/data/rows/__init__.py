"""A raw row to a pair, and how it was read."""
