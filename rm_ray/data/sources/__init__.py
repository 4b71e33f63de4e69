"""Files, folders and datasets to raw rows."""
