"""Token ids to the micro-batches of each step and rank."""
