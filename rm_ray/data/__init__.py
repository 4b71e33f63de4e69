"""Preference pairs, from the files that hold them to the tensors of one micro-batch."""
