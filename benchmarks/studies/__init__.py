"""What the tables of `benchmarks.reproduce` show, beside what the papers say of theirs."""
