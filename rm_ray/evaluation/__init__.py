"""Rewards -> metrics and reports."""
