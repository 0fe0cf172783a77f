"""Who owns which tensor, and the watch over it."""
