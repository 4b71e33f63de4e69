"""The training state -> the run's folder, and back."""
