"""Seeds on a live host: planted, trained, measured, tried out, kept in checkpoints, taken off."""
