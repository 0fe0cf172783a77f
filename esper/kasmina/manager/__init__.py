"""The seed manager, a room for each side of it, and what gathers the evidence for an order."""
