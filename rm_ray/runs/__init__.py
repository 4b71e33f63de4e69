"""A run's folder: what it is called, holds and may go on with."""
