"""DuckDB, shut in: what a query may be, and how it is run and read."""
