"""Keys and revocations as the log tells of them."""
