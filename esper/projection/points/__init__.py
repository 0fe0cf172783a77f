"""Points of the log, and the tables as they were there."""
