"""What runs in every worker of Ray Train."""
