"""Appending events: signing, chains, backpressure, breaker, telemetry sampling, typed calls, trace context."""
