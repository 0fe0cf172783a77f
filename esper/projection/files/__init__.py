"""One projection in one file: its transactions, its contents, and the hashes that prove them."""
