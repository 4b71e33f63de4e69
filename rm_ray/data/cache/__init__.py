"""The token cache: raw rows, tokenised once and stored as Parquet."""
