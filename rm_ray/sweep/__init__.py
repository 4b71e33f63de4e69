"""Many runs that differ in a few settings: which are tried, how they are scheduled and ranked."""
