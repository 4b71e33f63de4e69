"""Token ids -> the micro-batches of each step and rank."""
