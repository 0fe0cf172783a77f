"""What makes a run fast and computes none of it: kernels at hand, fetched ahead, memory, latencies."""
