"""The Ray Train worker: one rank's training loop."""
