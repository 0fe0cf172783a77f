"""Gates: from measured evidence to a verdict with its figures; pure."""
