"""What every fold begins with: where records come from, what is known of each, and what became of it; their columns."""
