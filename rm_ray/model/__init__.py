"""The reward model: a decoder backbone and a scalar head."""
