"""Settings: typed, validated, and read from recipes and command lines."""
