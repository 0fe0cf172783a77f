"""The epoch loop: steps, the edge, packets, orders on the whole run, returns after faults."""
