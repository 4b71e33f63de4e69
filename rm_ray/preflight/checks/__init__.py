"""Checks of a run: small functions from findings to a verdict with its remedy."""
