"""The commands, one module per script in jobs/."""
