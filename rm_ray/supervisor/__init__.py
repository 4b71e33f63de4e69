"""Attempt after attempt, until the run is finished or cannot be."""
