"""Running attempts until the run finishes or fails for good."""
