"""Texts as they are compared."""
