"""Rows of any form to token ids."""
