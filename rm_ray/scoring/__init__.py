"""Scoring of rows with published reward models, and evaluation of the rewards."""
