"""Predicted memory, traffic and time of a training run."""
