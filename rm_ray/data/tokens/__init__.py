"""Conversations -> token ids."""
