"""The training loop, from one optimizer step to a whole Ray Train run."""
