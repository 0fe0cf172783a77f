"""Handling parked records again: those that may go on, in the order of their partition, each end an event.

A crash between any two steps costs at most a repetition. A record is handled, then its end is appended; a member
that dies in between leaves it parked and free, and its successor, which folds the same log, handles it again before
anything that stands behind it. New records of the key wait behind the last parked one until none is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from esper.core.clock import Deadline
from esper.core.errors import NotReadyError
from esper.leyline import Record
from esper.leyline import messages as ly
from esper.oona._cluster import Position
from esper.oona.letters._parking import ParkedRecord
from esper.oona.letters._parking_log import Parking
from esper.oona.reading._reader import Reader

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric

#: Records and seconds of one turn, after which other keys have theirs.
_TURN_RECORDS: Final = 500
_TURN_SECONDS: Final = 0.5
#: Up to this many records are read through on the way to the next parked one; beyond, the reader is opened there.
_READ_THROUGH: Final = 20_000


@dataclass(frozen=True)
class Failed:
    """An event that is poison: its handler failed at every attempt, or it cannot be handled any more."""

    detail: str
    attempts: int


class Left(Exception):
    """Handling was given up before it came to an end; nothing is to be noted about the event."""


#: Handle one record; return None when that went well.
Attempt = Callable[[Record], Failed | None]


class Redriver:
    """Works off what may go on; one thread at a time.

    `attempt` handles a record that is read again; `still_mine` says whether the partitions are those of when the
    turn began.
    """

    def __init__(self, fabric: Fabric, parking: Parking, *, attempt: Attempt) -> None:
        self._fetcher = RecordFetcher(fabric)
        self._parking = parking
        self._attempt = attempt

    def turn(self, still_mine: Callable[[], bool], *, limit: int) -> int:
        """Handle at most `limit` parked records that may go on, for half a second; return how many were handled.

        Raises:
            Left: a stop came, or the partition is taken away.
            BrokerUnavailable: the log could not be read or written.
        """
        handled, deadline = 0, Deadline(_TURN_SECONDS)
        for place, partition in list(self._parking.active.items()):
            for offset in partition.runnable():
                if not still_mine() or deadline.expired or handled >= min(limit, _TURN_RECORDS):
                    return handled
                if partition.may_go(offset):
                    handled += self._redrive(place, partition.records[offset])
        if not self._parking.records:
            self._fetcher.close()
        return handled

    def close(self) -> None:
        """Release the connection."""
        self._fetcher.close()

    def _redrive(self, place: Position, parked: ParkedRecord) -> bool:
        record = self._fetcher.fetch(place, parked.offset)
        failed = Failed("its topic holds the record no longer", 1) if record is None else self._attempt(record)
        if failed is None:
            self._parking.release(place, parked)
            return True
        self._parking.park(
            record or Record(*place, parked.offset, parked.key, None),
            reason=ly.DEAD_LETTER_REASON_HANDLER_FAILED,
            detail=failed.detail,
            attempts=failed.attempts,
        )
        return False


class RecordFetcher:
    """Reads single records by their offsets, fast where they are asked for in ascending order."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._reader: Reader | None = None
        self._place: Position | None = None
        self._buffer: deque[Record] = deque()

    def fetch(self, place: Position, offset: int) -> Record | None:
        """Return the record at an offset, None when the topic holds it no longer.

        Raises:
            NotReadyError: it did not come within `settings.broker_retry_seconds`.
            BrokerUnavailable: no broker answered.
        """
        if not self._is_ahead(place, offset) and not self._open(place, offset):
            return None
        assert self._reader is not None, "an opened fetcher has a reader"
        deadline = Deadline(self._fabric.settings.broker_retry_seconds)
        while True:  # ends at the record, behind it, or at the deadline
            while self._buffer and self._buffer[0].offset < offset:
                self._buffer.popleft()
            if self._buffer:
                return self._buffer.popleft() if self._buffer[0].offset == offset else None
            if deadline.expired:
                raise NotReadyError(
                    f"{place[0]}-{place[1]}-{offset} cannot be read again",
                    cause="the broker did not give it",
                    next_step="Try again; the broker's log says more",
                )
            self._buffer.extend(self._reader.read_raw(min(1.0, deadline.remaining_seconds)))

    def close(self) -> None:
        """Release the connection."""
        if self._reader is not None:
            self._reader.close()
        self._reader = self._place = None
        self._buffer.clear()

    def _is_ahead(self, place: Position, offset: int) -> bool:
        """Return whether the open reader comes to the offset soon."""
        if self._reader is None or self._place != place:
            return False
        following = self._buffer[0].offset if self._buffer else self._reader.positions()[place]
        return following <= offset <= following + _READ_THROUGH

    def _open(self, place: Position, offset: int) -> bool:
        self.close()
        low, high = self._fabric.cluster.watermarks([place])[place]
        if not low <= offset < high:
            return False
        self._reader, self._place = self._fabric.reader({place: offset}), place
        return True
