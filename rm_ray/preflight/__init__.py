"""Checks, plans and estimates of a run before it claims any resources."""
