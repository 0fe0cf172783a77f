"""What must be heard first, and the conservative mode that ends with its cause."""
