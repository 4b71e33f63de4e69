"""What is minimised: pure functions of rewards and labels."""
