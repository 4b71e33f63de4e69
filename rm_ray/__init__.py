"""Pairwise reward models, trained on a Ray cluster of any size."""
