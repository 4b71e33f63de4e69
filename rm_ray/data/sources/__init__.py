"""Files, folders and datasets -> raw rows."""
