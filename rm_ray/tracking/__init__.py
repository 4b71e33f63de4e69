"""What a run leaves for people to look at: MLflow, its local history, plots."""
