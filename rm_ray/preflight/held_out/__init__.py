"""The named sets of held-out pairs, before any worker starts."""
