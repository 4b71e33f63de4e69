"""Rewards to figures."""
