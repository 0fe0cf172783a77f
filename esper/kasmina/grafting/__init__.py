"""What a seed is on its host: slots, hooks, alpha and blend modes, passes beside the training, folding."""
