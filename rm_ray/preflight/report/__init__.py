"""Preflight reports: text for people, JSON for programs."""
