"""A run's folder: its files, records, checkpoints and versions."""
