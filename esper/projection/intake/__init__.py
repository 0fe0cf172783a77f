"""From a source to committed batches."""
