"""Rewards to reports: by source and subset, of several models, as text and plots."""
