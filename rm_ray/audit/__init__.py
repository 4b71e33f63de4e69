"""Audits of preference data: repeated, contradictory, leaked and doubtful rows."""
