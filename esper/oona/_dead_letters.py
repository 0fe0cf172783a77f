"""Records that are set aside by reference: where they stand and why, never what they hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from esper.core.errors import UsageError
from esper.core.ids import derive_id
from esper.leyline import TYPE_HEADER, BadRecord, Record, short_name
from esper.leyline import messages as ly
from esper.oona._counters import reason_name
from esper.oona._publisher import Pending, Publisher

if TYPE_CHECKING:
    from esper.oona._events import Event
    from esper.oona._fabric import Fabric

DEAD_LETTERS: Final = "dead-letters"
_KEY_BYTES_MAX: Final = 256
_TEXT_CHARACTERS_MAX: Final = 500
#: References that a writer knows to be in the topic already; beyond, a letter may be written twice and collapses.
_KNOWN_MAX: Final = 100_000
#: Letters on their way before the writer waits for their acknowledgement.
_PENDING_MAX: Final = 1_000

Reference = tuple[str, int, int]


@dataclass(frozen=True)
class DeadLetterRow:
    """One record that was set aside, as `esper dlq list` shows it."""

    topic: str
    partition: int
    offset: int
    key: str
    #: Word of the contract without its prefix: UNSIGNED, BAD_SIGNATURE, HANDLER_FAILED, ...
    reason: str
    attempts: int


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
    #: When the first letter was appended, milliseconds since the epoch, by the broker.
    set_aside_ms: int
    #: Whether the topic still holds the record, with the digest that the letter names.
    record_unchanged: bool


def letter_for(record: Record, *, reason: ly.DeadLetterReason, detail: str, attempts: int, group: str) -> ly.DeadLetter:
    """Return the letter that sets `record` aside, its meta still empty but for the id.

    The event id follows from topic, partition and offset, so that the letters of several groups are one event.
    """
    raw_type = record.header(TYPE_HEADER) or b""
    return ly.DeadLetter(
        meta=ly.EventMeta(event_id=derive_id("dead-letter", record.topic, record.partition, record.offset)),
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=(record.key or b"")[:_KEY_BYTES_MAX],
        reason=reason,
        detail=detail[:_TEXT_CHARACTERS_MAX],
        value_digest=record.value_digest,
        attempts=attempts,
        consumer_group=group,
        record_type=raw_type.decode(errors="backslashreplace")[:_KEY_BYTES_MAX],
        value_bytes=len(record.value or b""),
    )


class DeadLetterWriter:
    """Writes the letters of one consumer or reader; asks the topic first, so that replays add nothing."""

    def __init__(self, fabric: Fabric, publisher: Publisher, *, group: str) -> None:
        self._fabric = fabric
        self._publisher = publisher
        self._group = group
        self._known: dict[Reference, None] | None = None
        self._pending: list[Pending] = []

    def write(self, record: Record, *, reason: ly.DeadLetterReason, detail: str, attempts: int) -> None:
        """Submit the letter for `record` unless the topic holds one; `settle` waits for it.

        Raises:
            BrokerUnavailable: the topic could not be read or written.
        """
        reference = (record.topic, record.partition, record.offset)
        known = self._already_written()
        if reference in known:
            return
        letter = letter_for(record, reason=reason, detail=detail, attempts=attempts, group=self._group)
        self._pending.append(self._publisher.submit(letter, key="-".join(map(str, reference))))
        known[reference] = None
        if len(known) > _KNOWN_MAX:
            known.pop(next(iter(known)))
        if len(self._pending) >= _PENDING_MAX:
            self.settle()

    def settle(self) -> None:
        """Wait until every letter submitted is acknowledged."""
        pending, self._pending = self._pending, []
        for letter in pending:
            letter.result()

    def _already_written(self) -> dict[Reference, None]:
        if self._known is None:
            letters = _read_letters(self._fabric)
            self._known = dict.fromkeys([_reference(_letter(event)) for event in letters][-_KNOWN_MAX:])
        return self._known


def list_dead_letters(fabric: Fabric) -> list[DeadLetterRow]:
    """Return every record that was set aside, in the order in which that first happened.

    Letters of several groups about one record are one row. A record of the topic `dead-letters` itself that
    must not be believed is listed like any other, whether or not anybody set it aside.
    """
    rows: dict[Reference, DeadLetterRow] = {}
    for entry in _entries(fabric):
        row = entry if isinstance(entry, DeadLetterRow) else _row(_letter(entry))
        rows.setdefault((row.topic, row.partition, row.offset), row)
    return list(rows.values())


def show_dead_letter(fabric: Fabric, topic: str, partition: int, offset: int) -> DeadLetterDetails:
    """Return all that is known of one record that was set aside.

    Raises:
        UsageError: no letter names that record.
    """
    wanted = (topic, partition, offset)
    events = [event for event in _read_letters(fabric) if _reference(_letter(event)) == wanted]
    if not events:
        raise UsageError(
            f"no dead letter names {topic}-{partition}-{offset}",
            cause="nothing set that record aside",
            next_step="`esper dlq list` shows those that were",
        )
    letter, row = _letter(events[0]), _row(_letter(events[0]))
    return DeadLetterDetails(
        topic=topic,
        partition=partition,
        offset=offset,
        key=row.key,
        reason=row.reason,
        attempts=row.attempts,
        detail=letter.detail,
        record_type=short_name(letter.record_type),
        value_bytes=letter.value_bytes,
        value_digest=letter.value_digest,
        consumer_groups=tuple(dict.fromkeys(_letter(event).consumer_group for event in events)),
        set_aside_ms=events[0].record.append_time_ms,
        record_unchanged=_still_there(fabric, wanted, letter.value_digest),
    )


def _letter(event: Event) -> ly.DeadLetter:
    return cast("ly.DeadLetter", event.message)


def _reference(letter: ly.DeadLetter) -> Reference:
    return (letter.topic, letter.partition, letter.offset)


def _row(letter: ly.DeadLetter) -> DeadLetterRow:
    key = letter.key.decode(errors="backslashreplace")
    reason = reason_name(letter.reason)
    return DeadLetterRow(letter.topic, letter.partition, letter.offset, key, reason, letter.attempts)


def _read_letters(fabric: Fabric) -> list[Event]:
    with fabric.reader(dict.fromkeys(fabric.topics.partitions(DEAD_LETTERS), "begin")) as reader:
        return reader.read_to_end()


def _entries(fabric: Fabric) -> Iterable[Event | DeadLetterRow]:
    """Yield the topic's letters and, in their places, its own records that must not be believed."""
    with fabric.reader(dict.fromkeys(fabric.topics.partitions(DEAD_LETTERS), "begin")) as reader:
        rejected: list[tuple[Record, BadRecord]] = []
        events = reader.read_to_end(on_reject=lambda record, bad: rejected.append((record, bad)))
    rows = [(record.offset, _row_of_rejected(record, bad)) for record, bad in rejected]
    merged: list[tuple[int, Event | DeadLetterRow]] = [*rows, *((event.offset, event) for event in events)]
    return [entry for _, entry in sorted(merged, key=lambda pair: pair[0])]


def _row_of_rejected(record: Record, bad: BadRecord) -> DeadLetterRow:
    return _row(letter_for(record, reason=bad.reason, detail=bad.detail, attempts=1, group=""))


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
