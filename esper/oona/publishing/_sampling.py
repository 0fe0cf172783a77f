"""Sampling of telemetry under pressure: how much of it is kept is a function of the backlog, never a latch."""

from __future__ import annotations

import threading
from typing import Final

from esper.core.ids import new_event_id
from esper.leyline import messages as ly

DROPPED_METRIC: Final = "oona.telemetry.dropped"
#: At this multiple of the backlog from which sampling begins, nothing of telemetry is kept.
NOTHING_FROM: Final = 16
#: In conservative mode at most every so many'th packet is kept, whatever the backlog.
_CONSERVATIVE_EVERY: Final = 16


def kept_every(backlog_records: int, *, begins_records: int, conservative: bool = False) -> int:
    """Return n where every n'th telemetry packet is kept; 1 keeps all, 0 none.

    From `begins_records` unacknowledged records on half are kept, and half as many with each doubling of the
    backlog; from 16 times as many on none is. What is called truth is never asked about.
    """
    assert begins_records >= 1, "sampling begins at some backlog"
    ratio = backlog_records // begins_records
    if ratio >= NOTHING_FROM:
        return 0
    every = 1 << ratio.bit_length()
    return max(every, _CONSERVATIVE_EVERY) if conservative else every


class TelemetrySampler:
    """Decides packet by packet and counts what it drops; safe to share between threads.

    Every n'th is kept by counting, not by chance, so that equal pressure gives equal samples.
    """

    def __init__(self, *, begins_records: int) -> None:
        self._begins_records = begins_records
        self._lock = threading.Lock()
        self._since_kept = 0
        self._dropped = 0
        self._reported = 0

    @property
    def dropped(self) -> int:
        """How many packets were dropped in all."""
        return self._dropped

    @property
    def unreported(self) -> int:
        """How many packets were dropped and are in no report yet."""
        return self._dropped - self._reported

    def begins(self, backlog_records: int) -> bool:
        """Return whether packets would be dropped at this backlog."""
        return backlog_records >= self._begins_records

    def keeps(self, backlog_records: int, *, conservative: bool) -> bool:
        """Return whether the next packet is to be published."""
        every = kept_every(backlog_records, begins_records=self._begins_records, conservative=conservative)
        with self._lock:
            self._since_kept += 1
            if every and self._since_kept >= every:
                self._since_kept = 0
                return True
            self._dropped += 1
            return False

    def drop(self) -> bool:
        """Count a packet that cannot be published now; return False, as `keeps` does for it."""
        with self._lock:
            self._dropped += 1
        return False

    def reported(self, count: int) -> None:
        """Take note that the number of `count` dropped packets was published."""
        with self._lock:
            self._reported += count


def dropped_report(count: int, *, source: str) -> ly.TelemetryPacket:
    """Return the telemetry that says how many packets of `source` were dropped since the last such report."""
    point = ly.MetricPoint(name=DROPPED_METRIC, value=count, unit="packets", attributes={"source": source})
    return ly.TelemetryPacket(
        packet_id=new_event_id(), source_subsystem=source, level=ly.TELEMETRY_LEVEL_WARNING, metrics=[point]
    )
