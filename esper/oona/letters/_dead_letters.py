"""Records that are set aside by reference: where they stand and why, never what they hold."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from esper.core.clock import Deadline
from esper.core.ids import derive_id
from esper.leyline import TYPE_HEADER, Record
from esper.leyline import messages as ly
from esper.oona.letters._parking import KEY_BYTES_MAX, PARKING_REASONS, ParkedRecord, end_id, letter_id, parking_key
from esper.oona.publishing._pending import Pending
from esper.oona.publishing._publisher import Publisher

if TYPE_CHECKING:
    from esper.oona._events import Event
    from esper.oona._fabric import Fabric

DEAD_LETTERS: Final = "dead-letters"
_TEXT_CHARACTERS_MAX: Final = 500
#: References that a writer knows to be in the topic already; beyond, a letter may be written twice and collapses.
_KNOWN_MAX: Final = 100_000
#: Letters on their way before the writer waits for their acknowledgement.
_PENDING_MAX: Final = 1_000

Reference = tuple[str, int, int]


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
        key=parking_key(record.key),
        reason=reason,
        detail=detail[:_TEXT_CHARACTERS_MAX],
        value_digest=record.value_digest,
        attempts=attempts,
        consumer_group=group,
        record_type=raw_type.decode(errors="backslashreplace")[:KEY_BYTES_MAX],
        value_bytes=len(record.value or b""),
    )


class DeadLetterWriter:
    """Writes the letters of one consumer or reader; asks the topic first, so that replays add nothing.

    Safe to share between threads.
    """

    def __init__(self, fabric: Fabric, publisher: Publisher, *, group: str) -> None:
        self._fabric = fabric
        self._publisher = publisher
        self._group = group
        self._known: dict[Reference, None] | None = None
        self._pending: list[Pending] = []
        self._lock = threading.RLock()

    @property
    def producer_id(self) -> str:
        """The producer that these letters come from."""
        return self._publisher.producer_id

    def write(self, record: Record, *, reason: ly.DeadLetterReason, detail: str, attempts: int) -> None:
        """Submit the letter for `record` unless the topic holds one; `settle` waits for it.

        Raises:
            BrokerUnavailable: the topic could not be read or written.
        """
        assert reason not in PARKING_REASONS, "a record is parked for one group, by `park`"
        reference = (record.topic, record.partition, record.offset)
        with self._lock:
            known = self._already_written()
            if reference in known:
                return
            letter = letter_for(record, reason=reason, detail=detail, attempts=attempts, group=self._group)
            self._submit(letter, reference)
            known[reference] = None
            if len(known) > _KNOWN_MAX:
                known.pop(next(iter(known)))

    def park(
        self, record: Record, *, reason: ly.DeadLetterReason, detail: str, attempts: int, previous: str = ""
    ) -> ly.DeadLetter:
        """Submit the letter that parks an authentic record for this group, and return it; `settle` waits for it.

        `previous` is the letter that parked the record before, whose place this one takes.

        Raises:
            BrokerUnavailable: the topic could not be written.
        """
        assert reason in PARKING_REASONS, "what must not be believed is set aside by `write`"
        letter = letter_for(record, reason=reason, detail=detail, attempts=attempts, group=self._group)
        place = (record.topic, record.partition, record.offset)
        letter.meta.event_id = letter_id(*place, group=self._group, previous=previous)
        with self._lock:
            self._submit(letter, place)
        return letter

    def redriven(self, topic: str, partition: int, record: ParkedRecord, *, cause: str) -> ly.Redriven:
        """Submit the word that a parked record has been handled, and return it; `settle` waits for it.

        `cause` is the event that set the record's key going again.

        Raises:
            BrokerUnavailable: the topic could not be written.
        """
        end = ly.Redriven(
            meta=ly.EventMeta(event_id=end_id(record.letter_id)),
            topic=topic,
            partition=partition,
            offset=record.offset,
            letter_id=record.letter_id,
            consumer_group=self._group,
        )
        with self._lock:
            self._submit(end, (topic, partition, record.offset), cause=cause)
        return end

    def settle(self, seconds: float | None = None) -> None:
        """Wait until every letter submitted is acknowledged, for `seconds` at most where they are given.

        Raises:
            BrokerUnavailable: one was not.
        """
        deadline = None if seconds is None else Deadline(seconds)
        with self._lock:
            pending, self._pending = self._pending, []
            for letter in pending:
                letter.result(None if deadline is None else deadline.remaining_seconds)

    def _submit(self, message: ly.DeadLetter | ly.Redriven, reference: Reference, *, cause: str = "") -> None:
        self._pending.append(self._publisher.submit(message, key=reference_key(*reference), causation_id=cause))
        if len(self._pending) >= _PENDING_MAX:
            self.settle()

    def _already_written(self) -> dict[Reference, None]:
        if self._known is None:
            letters = [letter for event in read_letters(self._fabric) if (letter := letter_of(event)) is not None]
            written = [(it.topic, it.partition, it.offset) for it in letters if it.reason not in PARKING_REASONS]
            self._known = dict.fromkeys(written[-_KNOWN_MAX:])
        return self._known


def reference_key(topic: str, partition: int, offset: int) -> str:
    """Return the key of every event of `dead-letters` about one record."""
    return f"{topic}-{partition}-{offset}"


def letter_of(event: Event) -> ly.DeadLetter | None:
    """Return the letter that an event of `dead-letters` is; None for orders and ends."""
    return event.message if isinstance(event.message, ly.DeadLetter) else None


def read_letters(fabric: Fabric) -> list[Event]:
    """Return all events of `dead-letters`, in order."""
    with fabric.reader(dict.fromkeys(fabric.topics.partitions(DEAD_LETTERS), "begin")) as reader:
        return reader.read_to_end()
