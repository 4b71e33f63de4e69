"""One attempt at a run, in its own process."""
