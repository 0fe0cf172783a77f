"""What a publisher hands back: a receipt, or the promise of one."""

from __future__ import annotations

import threading
from typing import NamedTuple

from esper.core.errors import BrokerUnavailable, EsperError


class Receipt(NamedTuple):
    """Where an acknowledged event stands in the log, and since when by the broker's clock."""

    topic: str
    partition: int
    offset: int
    append_time_ms: int
    event_id: str


class SampledOut(EsperError):
    """A telemetry packet was dropped under pressure; the number of those dropped is published instead."""


class Pending:
    """An event on its way: `result` waits for the broker's acknowledgement."""

    __slots__ = ("_failure", "_on_its_way", "_receipt", "_seconds_max", "_what", "done", "event_id", "since")

    def __init__(self, event_id: str, what: str, *, seconds_max: float, since: float = 0.0) -> None:
        self.event_id = event_id
        #: When it was submitted, in seconds of the publisher's monotonic clock.
        self.since = since
        self._what = what
        self._seconds_max = seconds_max
        #: Whether the outcome is known.
        self.done = False
        # Held until then. A lock: an event costs ten times as much, and one is made for every record.
        self._on_its_way = threading.Lock()
        self._on_its_way.acquire()
        self._receipt: Receipt | None = None
        self._failure: EsperError | None = None

    @property
    def sampled_out(self) -> bool:
        """Whether it was telemetry that was dropped under pressure, so that it will never be in the log."""
        return isinstance(self._failure, SampledOut)

    def result(self, timeout: float | None = None) -> Receipt:
        """Return the receipt; wait at most `timeout` seconds, by default as long as the record may take.

        Raises:
            BrokerUnavailable: not acknowledged in time; it may still reach the log if only `timeout` passed.
            SampledOut: it was telemetry and the backlog was long.
            EsperError: the broker refused it.
        """
        waited = self._seconds_max if timeout is None else timeout
        if not self.done and not self._outcome_within(waited):
            raise BrokerUnavailable(
                self._what, cause=f"no acknowledgement within {waited:g} seconds", next_step="Is the broker up?"
            )
        if self._failure is not None:
            raise self._failure
        assert self._receipt is not None, "a done event has a receipt or a failure"
        return self._receipt

    def settle(self, receipt: Receipt | None, failure: EsperError | None) -> None:
        """Make the outcome known; the publisher calls it once."""
        self._receipt, self._failure = receipt, failure
        self.done = True
        self._on_its_way.release()

    def _outcome_within(self, seconds: float) -> bool:
        """Return whether the outcome came in time; whoever is woken wakes the next who waits."""
        in_time = self._on_its_way.acquire(timeout=max(0.0, seconds))
        if in_time:
            self._on_its_way.release()
        return in_time


def sampled_out(event_id: str, what: str) -> Pending:
    """Return the outcome of a telemetry packet that was dropped under pressure."""
    pending = Pending(event_id, what, seconds_max=0.0)
    cause = "the backlog was long and telemetry is sampled then"
    pending.settle(None, SampledOut(what, cause=cause, next_step="Nothing is to be done: it recovers by itself"))
    return pending
