"""How often something costly is done again while it keeps failing."""

from __future__ import annotations

import math
import threading

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.rng import jitter


class Pace:
    """Lets something be done at once, and then ever more seldom while it is wanted again and again.

    Waits double from `first_seconds` to `most_seconds`, each with jitter (between half of it and all). What was not
    wanted for `most_seconds` longer than it had to wait starts anew. Success does not: what works for a moment and
    fails again is what costs most. In any time T it is done at most 2 + log2(most / first) + 3 T / most times.
    Any thread may ask.
    """

    def __init__(self, *, first_seconds: float, most_seconds: float, clock: Clock = SYSTEM_CLOCK) -> None:
        assert 0 < first_seconds <= most_seconds, "a wait is longer than nothing and at most the longest"
        self._first = first_seconds
        self._most = most_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._wait = first_seconds
        self._next = -math.inf

    def may(self) -> bool:
        """Return whether it may be done now; it then counts as done."""
        with self._lock:
            now = self._clock.monotonic()
            if now < self._next:
                return False
            rested = now - self._next > self._most
            self._wait = self._first if rested else min(2.0 * self._wait, self._most)
            self._next = now + jitter(self._wait)
            return True
