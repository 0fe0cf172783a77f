"""Records that were set aside: dead letters by reference, parked keys, redrive and discard."""
