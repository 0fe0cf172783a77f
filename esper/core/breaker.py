"""A circuit breaker as a value: what it allows is a function of what it was told, and of the time it is given.

Closed, it lets every call pass and counts failures in a row. At `failures_max` it opens and lets none pass. After
`open_seconds` it lets one probe pass (half-open): its success closes the breaker, its failure opens it again.
The pattern is Nygard's ("Release It!", 2007).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from esper.leyline import messages as ly


@dataclass(frozen=True)
class CircuitBreaker:
    """One breaker; every method returns a new one. Times are seconds of a monotonic clock."""

    failures_max: int = 3
    open_seconds: float = 30.0
    failures: int = 0
    opened_at: float | None = None
    probing: bool = False

    def __post_init__(self) -> None:
        assert self.failures_max >= 1, "a breaker opens after at least one failure"
        assert self.open_seconds > 0, "an open breaker needs a time after which it probes"

    def state(self, now: float) -> ly.CircuitBreakerState:
        """Return CLOSED, OPEN or HALF_OPEN at the time `now`."""
        if self.opened_at is None:
            return ly.CIRCUIT_STATE_CLOSED
        if self.probing or now - self.opened_at >= self.open_seconds:
            return ly.CIRCUIT_STATE_HALF_OPEN
        return ly.CIRCUIT_STATE_OPEN

    def allows(self, now: float) -> bool:
        """Return whether a call may be made now; in the half-open state only one may, see `began`."""
        if self.opened_at is None:
            return True
        return not self.probing and now - self.opened_at >= self.open_seconds

    def began(self, now: float) -> CircuitBreaker:
        """Return the breaker once an allowed call is under way: nobody else probes meanwhile."""
        assert self.allows(now), "a call began that the breaker does not allow"
        return self if self.opened_at is None else replace(self, probing=True)

    def succeeded(self) -> CircuitBreaker:
        """Return the breaker after a call that worked: closed, nothing counted."""
        return replace(self, failures=0, opened_at=None, probing=False)

    def failed(self, now: float) -> CircuitBreaker:
        """Return the breaker after a call that failed: one more counted, or open again after a probe."""
        failures = self.failures + 1
        if self.opened_at is not None or failures >= self.failures_max:
            return replace(self, failures=failures, opened_at=now, probing=False)
        return replace(self, failures=failures)

    def seconds_until_probe(self, now: float) -> float:
        """Return how long until a call is allowed again; 0.0 when one is."""
        if self.opened_at is None:
            return 0.0
        return max(0.0, self.opened_at + self.open_seconds - now)
