"""Raw rows to Parquet of token ids, once."""
