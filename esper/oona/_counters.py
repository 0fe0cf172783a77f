"""Counters of what a consumer or reader did with the records it was given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from esper.leyline import messages as ly

_PREFIX = "DEAD_LETTER_REASON_"


def reason_name(reason: ly.DeadLetterReason) -> str:
    """Return "BAD_SIGNATURE" for DEAD_LETTER_REASON_BAD_SIGNATURE."""
    return ly.DeadLetterReason.Name(reason).removeprefix(_PREFIX)


@dataclass(frozen=True)
class ConsumerMetrics:
    """A snapshot; every record read is handled, filtered, deduplicated or dead-lettered."""

    read: int = 0
    handled: int = 0
    #: Authentic events of a type that has no handler here.
    filtered: int = 0
    deduplicated: int = 0
    #: Records that were not believed (forged, foreign, malformed or contradicting), or that their handler refused.
    rejected: int = 0
    #: Attempts to handle an event after the first.
    retried: int = 0
    #: Dead letters by reason: the rejected ones and those whose handler failed.
    dead_lettered: Mapping[str, int] = field(default_factory=dict)
    #: Parked events that were handled again, with success.
    redriven: int = 0
    #: Keys and records that this member's partitions have parked now.
    parked_keys: int = 0
    parked_records: int = 0
    #: CLOSED, OPEN or HALF_OPEN.
    breaker: str = "CLOSED"


class Counters:
    """The mutable side of `ConsumerMetrics`; used by one thread, read by any."""

    def __init__(self) -> None:
        self.read = self.handled = self.filtered = self.deduplicated = self.rejected = self.retried = 0
        self.redriven = 0
        self.dead_lettered: Counter[str] = Counter()

    def snapshot(self) -> ConsumerMetrics:
        """Return the counters as they stand."""
        return ConsumerMetrics(
            self.read,
            self.handled,
            self.filtered,
            self.deduplicated,
            self.rejected,
            self.retried,
            dict(self.dead_lettered),
            self.redriven,
        )
