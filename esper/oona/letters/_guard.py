"""The consume breaker: a handler that fails for one key after the other is at fault itself, and parks no more."""

from __future__ import annotations

import logging
from typing import Final

from esper.core.breaker import CircuitBreaker
from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.leyline import messages as ly

_logger = logging.getLogger("esper.oona.consumer")
_LOG_KEYS_MAX: Final = 5


class ConsumeBreaker:
    """Opens when events of different keys are parked in a row, with none handled in between.

    Open, its member takes no records, stays in its group and obeys redrives. After a while one event is taken as a
    probe: handled, it closes the breaker; parked, it opens it again. Used by one thread, read by any.
    """

    def __init__(self, what: str, *, failures_max: int, open_seconds: float, clock: Clock = SYSTEM_CLOCK) -> None:
        self._what = what
        self._clock = clock
        self._breaker = CircuitBreaker(failures_max=failures_max, open_seconds=open_seconds)
        self._keys: list[bytes] = []
        #: Whether anything is counted; False costs whoever asks one look.
        self.strained = False

    def state(self) -> ly.CircuitBreakerState:
        """Return CLOSED, OPEN or HALF_OPEN."""
        return self._breaker.state(self._clock.monotonic())

    def admits(self) -> bool:
        """Return whether a record may be taken now; in the half-open state it becomes the probe."""
        now = self._clock.monotonic()
        if self._breaker.probing:
            return True  # Its member is the only caller; what it took so far was no event to be handled.
        if not self._breaker.allows(now):
            return False
        self._breaker = self._breaker.began(now)
        return True

    def succeeded(self) -> None:
        """Take note that an event was handled."""
        if self._breaker.opened_at is not None:
            _logger.warning("%s takes records again: an event was handled", self._what)
        self._breaker = self._breaker.succeeded()
        self._keys.clear()
        self.strained = False

    def failed(self, key: bytes) -> None:
        """Take note that an event of `key` was parked."""
        if key in self._keys:
            return
        self._keys = [*self._keys, key][-_LOG_KEYS_MAX:]
        self._breaker = self._breaker.failed(self._clock.monotonic())
        self.strained = True
        if self._breaker.opened_at is not None:
            _logger.error(
                "%s takes no records for %g seconds: %d events of different keys failed in a row, the last of %s",
                self._what,
                self._breaker.open_seconds,
                self._breaker.failures,
                ", ".join(each.decode(errors="backslashreplace") for each in self._keys),
            )
