"""The Ray cluster that a command uses, and how its processes meet."""
