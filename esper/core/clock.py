"""The only place that reads a clock, so that tests can put another in its stead."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol


class Clock(Protocol):
    """What time it is, how long things take, and how to wait."""

    def now_ns(self) -> int:
        """Return wall-clock time as nanoseconds since the Unix epoch."""

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start that never go backwards."""

    def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""


class SystemClock:
    """The machine's own clock."""

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass
class ManualClock:
    """A clock that moves only when told to; sleeping moves it."""

    wall_ns: int = 1_700_000_000_000_000_000
    elapsed_seconds: float = 0.0
    slept_seconds: list[float] = field(default_factory=list)

    def now_ns(self) -> int:
        return self.wall_ns + int(self.elapsed_seconds * 1e9)

    def monotonic(self) -> float:
        return self.elapsed_seconds

    def sleep(self, seconds: float) -> None:
        self.slept_seconds.append(seconds)
        self.elapsed_seconds += seconds

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.elapsed_seconds += seconds


class Deadline:
    """A point in time that a whole operation shares, whatever number of waits it makes."""

    def __init__(self, seconds: float, *, clock: Clock | None = None) -> None:
        self._clock: Clock = clock or SYSTEM_CLOCK
        self._end = self._clock.monotonic() + seconds

    @property
    def remaining_seconds(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self._end - self._clock.monotonic())

    @property
    def expired(self) -> bool:
        """Whether no time is left."""
        return self.remaining_seconds == 0.0


SYSTEM_CLOCK: Clock = SystemClock()
