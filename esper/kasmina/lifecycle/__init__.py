"""What may happen to a seed, as pure functions and folds: stages, orders, verdicts on an edge, resets, returns."""
