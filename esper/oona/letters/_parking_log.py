"""What a member's partitions have parked, as the log tells it: read at each assignment, followed while anything is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from esper.core.clock import Deadline
from esper.core.errors import NotReadyError, OperationFailed
from esper.leyline import Record
from esper.leyline import messages as ly
from esper.oona._cluster import Position
from esper.oona._events import Event, place_of
from esper.oona.letters._dead_letters import DEAD_LETTERS, DeadLetterWriter, reference_key
from esper.oona.letters._parking import ParkedPartition, ParkedRecord, parking_key, place_prefix
from esper.oona.reading._reader import Reader

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric

_READ_SECONDS: Final = 120.0
_FOLLOW_EVERY_SECONDS: Final = 0.1
#: Reads of one look at the topic, so that a flood of letters cannot hold the member up.
_ROUNDS_MAX: Final = 50


class Parking:
    """The parked sets of one member's partitions; one thread at a time.

    Nothing is kept but the log: each set is the fold of `dead-letters`, whose records about other partitions are
    passed over unverified. What this member appends is folded as it is submitted and not when it comes back. A
    member that has parked nothing keeps no connection and does nothing for any record.
    """

    def __init__(
        self,
        fabric: Fabric,
        letters: DeadLetterWriter,
        *,
        group: str,
        positions: Callable[[], Mapping[Position, int]],
    ) -> None:
        self._fabric = fabric
        self._letters = letters
        self._group = group
        self._positions = positions
        self._partitions: dict[Position, ParkedPartition] = {}
        self._reader: Reader | None = None
        self._prefixes: tuple[bytes, ...] = ()
        self._look_due = Deadline(0.0)
        #: The partitions in which a record may be parked, wait, or have been dealt with by a redrive. Empty: none.
        self.active: dict[Position, ParkedPartition] = {}

    @property
    def keys(self) -> int:
        """How many keys are parked."""
        return sum(partition.keys for partition in list(self.active.values()))

    @property
    def records(self) -> int:
        """How many records are parked or wait."""
        return sum(len(partition.records) for partition in list(self.active.values()))

    def rebuild(self) -> None:
        """Fold the log anew for the partitions that this member holds now.

        Raises:
            BrokerUnavailable, NotReadyError: the topic could not be read to its end.
        """
        self._letters.settle()
        self.close()
        positions = self._positions()
        self._prefixes = tuple(place_prefix(*place).encode() for place in positions)
        places = self._fabric.topics.partitions(DEAD_LETTERS)
        ends = {place: high for place, (low, high) in self._fabric.cluster.watermarks(places).items() if high > low}
        if not ends:
            return
        self._reader = self._fabric.reader(dict.fromkeys(places, "begin"))
        self._read_to(self._reader, ends)
        for place, partition in self._partitions.items():
            if partition.records or max(partition.ended, default=-1) >= positions[place]:
                self.active[place] = partition
        if not any(partition.records for partition in self.active.values()):
            self._stop_following()

    def follow(self) -> bool:
        """Take in what others said since the last look, if one is due; return whether anything may go on.

        Raises:
            BrokerUnavailable: the topic could not be read.
        """
        self._drop_what_is_not_held()
        if self._reader is not None and self._look_due.expired:
            self._look_due = Deadline(_FOLLOW_EVERY_SECONDS)
            for _ in range(_ROUNDS_MAX):
                before = self._reader.positions()
                self._fold(self._reader.read(0.0, only=self._is_mine), echoes=False)
                if self._reader.positions() == before:
                    break
            self._tidy()
        if not self.records:
            self._stop_following()
        return any(next(partition.runnable(), None) is not None for partition in self.active.values())

    def is_known(self, record: Record) -> bool:
        """Return whether a record that is read again was parked before, or dealt with by a redrive since."""
        partition = self.active.get(place_of(record))
        return partition is not None and (record.offset in partition.records or record.offset in partition.ended)

    def must_wait(self, record: Record) -> bool:
        """Return whether an earlier record of the key is parked."""
        partition = self.active.get(place_of(record))
        return partition is not None and partition.holds(parking_key(record.key))

    def check_room(self, record: Record, *, keys_max: int, records_max: int) -> None:
        """Raise when nothing more may be parked.

        Raises:
            OperationFailed: too many keys are parked, or too many records wait.
        """
        cause = ""
        if self.keys >= keys_max and not self.must_wait(record):
            cause = f"{self.keys} keys are parked already, as many as ESPER_PARKED_KEYS_MAX allows"
        elif self.records >= records_max:
            cause = f"{self.records} records are parked or wait, as many as ESPER_PARKED_RECORDS_MAX allows"
        if cause:
            place = reference_key(record.topic, record.partition, record.offset)
            raise OperationFailed(
                f"group {self._group} stops before {place}",
                cause=cause,
                next_step="`esper dlq list` shows them; mend the handler, then `esper dlq redrive` or `discard`",
            )

    def park(self, record: Record, *, reason: ly.DeadLetterReason, detail: str, attempts: int) -> None:
        """Park a record by a letter; `DeadLetterWriter.settle` waits for it.

        Raises:
            BrokerUnavailable: the topic could not be read or written.
        """
        partition = self._partitions.get(place_of(record))
        known = partition.records.get(record.offset) if partition else None
        previous = known.letter_id if known else ""
        letter = self._letters.park(record, reason=reason, detail=detail, attempts=attempts, previous=previous)
        if self._reader is None:
            self.rebuild()  # The first one: from here on the log is followed.
            return
        partition = self._partitions.setdefault(place_of(record), ParkedPartition())
        partition.fold(letter, letter.meta)
        self.active[place_of(record)] = partition

    def release(self, place: Position, record: ParkedRecord) -> None:
        """Say that a parked record has been handled; `DeadLetterWriter.settle` waits for it.

        Raises:
            BrokerUnavailable: the topic could not be written.
        """
        partition = self.active[place]
        cause = partition.cause(record.key) or record.letter_id
        end = self._letters.redriven(*place, record, cause=cause)
        partition.fold(end, end.meta)

    def passed(self, record: Record) -> None:
        """Take note that the member has passed a record, so that the ends before it no longer matter."""
        partition = self.active.get(place_of(record))
        if partition is not None and not partition.records and record.offset >= max(partition.ended, default=-1):
            del self.active[place_of(record)]

    def close(self) -> None:
        """Forget everything and release the connection; `rebuild` begins anew."""
        self._stop_following()
        self._partitions = {}
        self.active.clear()

    def _read_to(self, reader: Reader, ends: Mapping[Position, int]) -> None:
        deadline = Deadline(_READ_SECONDS)
        while any(reader.positions()[place] < end for place, end in ends.items()):
            if deadline.expired:
                raise NotReadyError(
                    f"what group {self._group} has parked is not known",
                    cause=f"the topic {DEAD_LETTERS} was not read to its end within {_READ_SECONDS:g} seconds",
                    next_step="Try again; the broker's log says more",
                )
            self._fold(reader.read(1.0, only=self._is_mine), echoes=True)

    def _is_mine(self, record: Record) -> bool:
        return record.key is not None and record.key.startswith(self._prefixes)

    def _fold(self, events: list[Event], *, echoes: bool) -> None:
        held = self._positions()
        for event in events:
            message = event.message
            assert isinstance(message, ly.DeadLetter | ly.Redriven | ly.Discarded), "the topic carries no other types"
            place = (message.topic, message.partition)
            if message.consumer_group != self._group or place not in held:
                continue
            if event.meta.subject != reference_key(*place, message.offset):
                continue
            if not echoes and event.meta.producer_id == self._letters.producer_id:
                continue
            self._partitions.setdefault(place, ParkedPartition()).fold(message, event.meta)

    def _tidy(self) -> None:
        for place, partition in self._partitions.items():
            if partition.records:
                self.active[place] = partition

    def _drop_what_is_not_held(self) -> None:
        held = self._positions()
        for place in self._partitions.keys() - held.keys():
            del self._partitions[place]
            self.active.pop(place, None)

    def _stop_following(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
