"""The store: the tick log into a database or Parquet files, and questions to either."""
