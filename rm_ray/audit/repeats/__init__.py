"""Rows that repeat, resemble or contradict others, among any number of rows."""
