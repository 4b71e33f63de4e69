"""Rows that share prompts or n-grams with evaluation sets."""
