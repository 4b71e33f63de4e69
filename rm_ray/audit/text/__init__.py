"""Texts to words, n-grams, MinHash signatures and languages."""
