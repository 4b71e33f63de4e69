"""The sections of a configuration, one module each."""
