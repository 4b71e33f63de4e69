"""The training state to the run's folder and back."""
