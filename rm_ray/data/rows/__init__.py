"""A raw row -> a pair, with a record of how its columns were read."""
