"""Things every subsystem needs and none owns: settings, clock, randomness, ids, errors, telemetry."""
