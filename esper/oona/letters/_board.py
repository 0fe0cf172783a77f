"""Everything that was set aside, parked or given up, as people ask for it: a fold of the whole topic."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from esper.core.errors import UsageError
from esper.leyline import BadRecord, Record, short_name
from esper.leyline import messages as ly
from esper.oona._counters import reason_name
from esper.oona.letters._dead_letters import DEAD_LETTERS, Reference, letter_for, reference_key
from esper.oona.letters._parking import PARKING_REASONS, ParkedPartition, ParkedRecord, ParkState

if TYPE_CHECKING:
    from esper.oona._events import Event
    from esper.oona._fabric import Fabric

#: State of a record that must not be believed and that nobody has given up yet.
SET_ASIDE: Final = "set_aside"
_ENDED: Final = frozenset({ParkState.REDRIVEN.value, ParkState.DISCARDED.value})
#: (group, topic, partition); the group is empty for what is set aside for all of them.
_Lane = tuple[str, str, int]


@dataclass(frozen=True)
class DeadLetterRow:
    """One record that was set aside, as `esper dlq list` shows it."""

    topic: str
    partition: int
    offset: int
    key: str
    #: Word of the contract without its prefix: UNSIGNED, BAD_SIGNATURE, HANDLER_FAILED, WAITS_FOR_KEY, ...
    reason: str
    attempts: int
    #: set_aside; or parked, waits, ordered (redriven as soon as its member sees it); or redriven, discarded.
    state: str = SET_ASIDE
    #: Group that parked it; empty for what is set aside for all of them.
    group: str = ""
    #: Offset of the parked record that it waits for.
    waits_for: int | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing is left to be done about it."""
        return self.state in _ENDED


@dataclass(frozen=True)
class DeadLetterDetails:
    """One record that was set aside, as `esper dlq show` shows it; holds nothing of its payload."""

    topic: str
    partition: int
    offset: int
    key: str
    reason: str
    attempts: int
    detail: str
    record_type: str
    value_bytes: int
    value_digest: str
    #: Groups that set it aside, the first one first.
    consumer_groups: tuple[str, ...]
    #: Where it stands with each group that parked it, "group: state"; set_aside or discarded for all of them.
    states: tuple[str, ...]
    #: When the first letter was appended, milliseconds since the epoch, by the broker.
    set_aside_ms: int
    #: Whether the topic still holds the record, with the digest that the letter names.
    record_unchanged: bool


@dataclass(frozen=True)
class Rejected:
    """A record of `dead-letters` itself that must not be believed."""

    record: Record
    bad: BadRecord


class LetterBoard:
    """The fold of all letters, orders and ends. Its rows stand in the order in which each record was set aside."""

    def __init__(self, entries: Iterable[Event | Rejected]) -> None:
        self._partitions: dict[_Lane, ParkedPartition] = {}
        self._letters: dict[tuple[str, Reference], ly.DeadLetter] = {}
        self._given_up: set[Reference] = set()
        self._events: dict[Reference, list[Event]] = {}
        for entry in entries:
            if isinstance(entry, Rejected):
                self._fold_rejected(entry)
            else:
                self._fold(entry)

    @classmethod
    def read(cls, fabric: Fabric) -> LetterBoard:
        """Return the board as the topic has it now.

        Raises:
            BrokerUnavailable: the topic could not be read.
        """
        return cls(_entries(fabric))

    def rows(self) -> list[DeadLetterRow]:
        """Return one row for each record that was set aside, and for each group that parked one."""
        return [self._row(group, letter) for (group, _), letter in self._letters.items()]

    def groups(self, reference: Reference) -> list[str]:
        """Return the groups that have parked a record and not ended it."""
        topic, partition, offset = reference
        lanes = [lane for lane, found in self._partitions.items() if offset in found.records]
        return sorted(group for group, *place in lanes if place == [topic, partition])

    def parked(self, group: str, reference: Reference) -> ParkedRecord | None:
        """Return what a group has parked at a place."""
        found = self._partitions.get((group, *reference[:2]))
        return found.records.get(reference[2]) if found else None

    def waiting_behind(self, group: str, reference: Reference) -> int:
        """Return how many records wait behind a parked one of their key."""
        found = self._partitions.get((group, *reference[:2]))
        record = found.records.get(reference[2]) if found else None
        if found is None or record is None:
            return 0
        return sum(one.key == record.key and one.offset > record.offset for one in found.records.values())

    def head(self, group: str, reference: Reference) -> ParkedRecord | None:
        """Return the first parked record of the key of a parked one."""
        found = self._partitions.get((group, *reference[:2]))
        record = found.records.get(reference[2]) if found else None
        return found.head(record.key) if found and record else None

    def set_aside(self, reference: Reference) -> ly.DeadLetter | None:
        """Return the letter that sets a record aside for all groups, unless it was given up."""
        return None if reference in self._given_up else self._letters.get(("", reference))

    def events(self, reference: Reference) -> list[Event]:
        """Return all letters about one record, in order."""
        return self._events.get(reference, [])

    def state(self, group: str, reference: Reference) -> str:
        """Return the word for where a record stands with a group; group "": with all of them."""
        if not group:
            return ParkState.DISCARDED.value if reference in self._given_up else SET_ASIDE
        found = self._partitions[(group, *reference[:2])]
        record = found.records.get(reference[2])
        return (record.state if record else found.ended[reference[2]]).value

    def _fold(self, event: Event) -> None:
        message = event.message
        assert isinstance(message, ly.DeadLetter | ly.Redriven | ly.Discarded), "the topic carries no other types"
        reference = (message.topic, message.partition, message.offset)
        if event.meta.subject != reference_key(*reference):
            return  # Members look for a place's events under its key; what stands under another is none for anybody.
        if isinstance(message, ly.DeadLetter):
            self._events.setdefault(reference, []).append(event)
            if message.reason not in PARKING_REASONS:
                self._letters.setdefault(("", reference), message)
                return
            self._letters[(message.consumer_group, reference)] = message
        elif not message.consumer_group:
            if isinstance(message, ly.Discarded):
                self._given_up.add(reference)
            return
        lane = (message.consumer_group, message.topic, message.partition)
        self._partitions.setdefault(lane, ParkedPartition()).fold(message, event.meta)

    def _fold_rejected(self, rejected: Rejected) -> None:
        letter = letter_for(
            rejected.record, reason=rejected.bad.reason, detail=rejected.bad.detail, attempts=1, group=""
        )
        self._letters.setdefault(("", (letter.topic, letter.partition, letter.offset)), letter)

    def _row(self, group: str, letter: ly.DeadLetter) -> DeadLetterRow:
        reference = (letter.topic, letter.partition, letter.offset)
        state = self.state(group, reference)
        head = self.head(group, reference) if group else None
        return DeadLetterRow(
            *reference,
            key=letter.key.decode(errors="backslashreplace"),
            reason=reason_name(letter.reason),
            attempts=letter.attempts,
            state=state,
            group=group,
            waits_for=head.offset if head and head.offset != letter.offset else None,
        )


def list_dead_letters(fabric: Fabric, *, ended: bool = False) -> list[DeadLetterRow]:
    """Return every record that is set aside or parked, in the order in which that happened.

    Letters of several groups about one bad record are one row; a record that several groups parked has one row for
    each. A record of the topic `dead-letters` itself that must not be believed is listed like any other, whether
    or not anybody set it aside. With `ended` the rows of what was redriven or discarded are there, too.
    """
    return [row for row in LetterBoard.read(fabric).rows() if ended or not row.ended]


def show_dead_letter(fabric: Fabric, topic: str, partition: int, offset: int) -> DeadLetterDetails:
    """Return all that is known of one record that was set aside.

    Raises:
        UsageError: no letter names that record.
    """
    reference = (topic, partition, offset)
    board = LetterBoard.read(fabric)
    events = board.events(reference)
    if not events:
        raise UsageError(
            f"no dead letter names {reference_key(*reference)}",
            cause="nothing set that record aside",
            next_step="`esper dlq list` shows those that were",
        )
    letters = [event.message for event in events if isinstance(event.message, ly.DeadLetter)]
    last = letters[-1]
    rows = [row for row in board.rows() if (row.topic, row.partition, row.offset) == reference]
    return DeadLetterDetails(
        topic=topic,
        partition=partition,
        offset=offset,
        key=last.key.decode(errors="backslashreplace"),
        reason=reason_name(last.reason),
        attempts=last.attempts,
        detail=last.detail,
        record_type=short_name(last.record_type),
        value_bytes=last.value_bytes,
        value_digest=last.value_digest,
        consumer_groups=tuple(dict.fromkeys(letter.consumer_group for letter in letters)),
        states=tuple(f"{row.group}: {row.state}" if row.group else row.state for row in rows),
        set_aside_ms=events[0].record.append_time_ms,
        record_unchanged=_still_there(fabric, reference, last.value_digest),
    )


def _entries(fabric: Fabric) -> list[Event | Rejected]:
    """Return the topic's events and, in their places, its own records that must not be believed."""
    with fabric.reader(dict.fromkeys(fabric.topics.partitions(DEAD_LETTERS), "begin")) as reader:
        rejected: list[Rejected] = []
        events = reader.read_to_end(on_reject=lambda record, bad: rejected.append(Rejected(record, bad)))
    merged: list[tuple[int, Event | Rejected]] = [(one.record.offset, one) for one in rejected]
    merged += [(event.offset, event) for event in events]
    return [entry for _, entry in sorted(merged, key=lambda pair: pair[0])]


def _still_there(fabric: Fabric, reference: Reference, value_digest: str) -> bool:
    """Return whether the record that a letter names is still in the log, byte for byte."""
    topic, partition, offset = reference
    if topic not in fabric.topics or partition >= fabric.topics[topic].partitions:
        return False
    low, high = fabric.cluster.watermarks([(topic, partition)])[(topic, partition)]
    if not low <= offset < high:
        return False
    with fabric.reader({(topic, partition): offset}) as reader:
        records = reader.read_raw(fabric.settings.connect_seconds, limit=1)
    return bool(records) and records[0].offset == offset and records[0].value_digest == value_digest
