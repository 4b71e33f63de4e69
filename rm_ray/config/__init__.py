"""Settings: typed, validated, parsed from recipes and command lines."""
