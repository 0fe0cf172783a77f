"""What is parked of one partition: a fold of the topic `dead-letters`, for one group.

An authentic event whose handler failed for good is parked, and with it its key: the key's later events wait in
their order, and no other key waits for them (a sequenced dead-letter queue, as Axon's). The fold knows three events:

- `DeadLetter` parks a record: HANDLER_FAILED blocks its key, WAITS_FOR_KEY stands behind what blocks it.
- `Redriven` without a cause is a person's order to handle the first record of a key again; with a cause it is the
  member's word that a parked record has been handled.
- `Discarded` gives a parked record up.

A key is free to go on as soon as its first parked record is not one that failed. What the fold says depends on the
events alone, so that every member and every tool that reads them sees the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from google.protobuf.message import Message

from esper.core.ids import EventId, derive_id
from esper.leyline import messages as ly

KEY_BYTES_MAX: Final = 256
#: Reasons that park a record for one group; a letter with any other reason sets it aside for all of them.
PARKING_REASONS: Final = frozenset({ly.DEAD_LETTER_REASON_HANDLER_FAILED, ly.DEAD_LETTER_REASON_WAITS_FOR_KEY})


class ParkState(Enum):
    """Where a parked record stands."""

    PARKED = "parked"
    WAITS = "waits"
    ORDERED = "ordered"
    REDRIVEN = "redriven"
    DISCARDED = "discarded"


@dataclass(frozen=True)
class ParkedRecord:
    """One record that a group has yet to handle; `letter_id` names the letter that says so last."""

    offset: int
    key: bytes
    letter_id: str
    state: ParkState
    attempts: int = 0


def parking_key(key: bytes | None) -> bytes:
    """Return what a record's key is parked under; longer keys that begin alike wait for each other."""
    return (key or b"")[:KEY_BYTES_MAX]


def place_prefix(topic: str, partition: int) -> str:
    """Return what the keys of all events of `dead-letters` begin with that are about one partition."""
    return f"{topic}-{partition}-"


def letter_id(topic: str, partition: int, offset: int, *, group: str, previous: str = "") -> EventId:
    """Return the id of the letter that parks a record; `previous` is the letter that it takes the place of."""
    return derive_id("dead-letter", topic, partition, offset, group, previous)


def order_id(letter: str) -> EventId:
    """Return the id of the order to redrive what `letter` parked: two people who give it give one order."""
    return derive_id("redrive-order", letter)


def end_id(letter: str) -> EventId:
    """Return the id of the event that says that what `letter` parked has been handled."""
    return derive_id("redriven", letter)


class ParkedPartition:
    """The fold for one group and partition; `fold` has no effect but on this object."""

    def __init__(self) -> None:
        #: What is parked and has not ended, by offset.
        self.records: dict[int, ParkedRecord] = {}
        #: How parked records ended, by offset; what ended is never parked again.
        self.ended: dict[int, ParkState] = {}
        self._queues: dict[bytes, deque[int]] = {}
        #: The event that set a key going again, by key.
        self._freed_by: dict[bytes, str] = {}

    def fold(self, message: Message, meta: ly.EventMeta) -> None:
        """Take in one event about this partition and group; events in the order of the topic."""
        if isinstance(message, ly.DeadLetter):
            self._fold_letter(message, meta.event_id)
        elif isinstance(message, ly.Discarded):
            self._end(message.offset, ParkState.DISCARDED, meta.event_id)
        elif isinstance(message, ly.Redriven) and meta.causation_id:
            self._end(message.offset, ParkState.REDRIVEN, meta.causation_id)
        elif isinstance(message, ly.Redriven):
            self._fold_order(message, meta.event_id)

    @property
    def keys(self) -> int:
        """How many keys are blocked or have records that wait."""
        return len(self._queues)

    def holds(self, key: bytes) -> bool:
        """Return whether a new record of `key` has to wait."""
        return key in self._queues

    def head(self, key: bytes) -> ParkedRecord | None:
        """Return the first parked record of a key."""
        queue = self._queues.get(key)
        return self.records[queue[0]] if queue else None

    def may_go(self, offset: int) -> bool:
        """Return whether a parked record is the next one of its key and is to be handled now."""
        record = self.records.get(offset)
        if record is None or record.state is ParkState.PARKED:
            return False
        return self._queues[record.key][0] == offset

    def runnable(self) -> Iterator[int]:
        """Return, in ascending order, the offsets of the keys that are free to go on."""
        free = [queue for queue in self._queues.values() if self.records[queue[0]].state is not ParkState.PARKED]
        return iter(sorted(offset for queue in free for offset in self._until_blocked(queue)))

    def cause(self, key: bytes) -> str:
        """Return the id of the event that set a key going again; empty where the log names none."""
        return self._freed_by.get(key, "")

    def _until_blocked(self, queue: deque[int]) -> Iterator[int]:
        for offset in queue:
            if self.records[offset].state is ParkState.PARKED:
                return
            yield offset

    def _fold_letter(self, letter: ly.DeadLetter, event_id: str) -> None:
        if letter.reason not in PARKING_REASONS or letter.offset in self.ended:
            return
        failed = letter.reason == ly.DEAD_LETTER_REASON_HANDLER_FAILED
        known = self.records.get(letter.offset)
        if known is not None and (known.letter_id == event_id or not failed):
            return
        key = parking_key(letter.key) if known is None else known.key
        state = ParkState.PARKED if failed else ParkState.WAITS
        self.records[letter.offset] = ParkedRecord(letter.offset, key, event_id, state, letter.attempts)
        if known is None:
            self._enqueue(key, letter.offset)

    def _enqueue(self, key: bytes, offset: int) -> None:
        queue = self._queues.setdefault(key, deque())
        # A member parks in the order of the partition; only one that had lost it meanwhile comes too late.
        late = bool(queue) and queue[-1] > offset
        queue.append(offset)
        if late:
            self._queues[key] = deque(sorted(queue))

    def _fold_order(self, order: ly.Redriven, event_id: str) -> None:
        record = self.records.get(order.offset)
        # An order answers one letter; what failed again since then asks for a new one.
        if record is None or record.state is not ParkState.PARKED or record.letter_id != order.letter_id:
            return
        self.records[order.offset] = replace(record, state=ParkState.ORDERED)
        self._freed_by[record.key] = event_id

    def _end(self, offset: int, state: ParkState, cause: str) -> None:
        record = self.records.pop(offset, None)
        if record is None:
            return
        self.ended[offset] = state
        queue = self._queues[record.key]
        first = queue[0] == offset
        queue.remove(offset)  # At once for the first one, which nearly every end is about.
        if not queue:
            del self._queues[record.key]
            self._freed_by.pop(record.key, None)
        elif first:
            self._freed_by[record.key] = cause
