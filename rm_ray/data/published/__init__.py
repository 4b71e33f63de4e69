"""Rows of published preference sets -> rows of the documented form."""
