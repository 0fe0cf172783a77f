"""From Kafka's message to an event that may be believed."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from operator import methodcaller
from typing import Final, NamedTuple, cast

from confluent_kafka import Message as KafkaMessage
from google.protobuf.message import Message

from esper.leyline import Authenticator, BadRecord, KeyRing, Record, RecordColumns, decode, open_event, open_record
from esper.leyline import messages as ly
from esper.oona._cluster import Position
from esper.oona._memory import Chained, Judgement, LogMemory, Place
from esper.oona.topics._specs import TopicCatalog

_HeaderList = list[tuple[str, bytes | None]]
_CHECKED_HEADERS: Final = cast("Callable[[KafkaMessage], _HeaderList | None]", methodcaller("headers"))


class Event(NamedTuple):
    """An authentic record with its meta and its message."""

    record: Record
    meta: ly.EventMeta
    message: Message

    @property
    def topic(self) -> str:
        """Topic it was read from."""
        return self.record.topic

    @property
    def partition(self) -> int:
        """Partition it was read from."""
        return self.record.partition

    @property
    def offset(self) -> int:
        """Offset within its partition."""
        return self.record.offset


#: What a consumer calls for each new event of a type.
Handler = Callable[[Event], None]


def record_of(message: KafkaMessage) -> Record:
    """Return Kafka's message as a record; the message must carry no error."""
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None, "a message without error has a topic"
    assert partition is not None, "a message without error has a partition"
    assert offset is not None, "a message without error has an offset"
    append_time_ms = message.timestamp()[1]
    headers = headers_of(message) or ()
    return Record(topic, partition, offset, message.key(), message.value(), headers, append_time_ms)


def columns_of(messages: Sequence[KafkaMessage]) -> RecordColumns:
    """Return Kafka's messages, which must carry no errors, as columns.

    Without an error a message has its place, as `record_of` asserts; here an assertion for each would cost more than
    reading it.
    """
    return RecordColumns(
        [message.topic() for message in messages],  # type: ignore[misc]  # a message without error has a place
        [message.partition() for message in messages],  # type: ignore[misc]  # and its place a partition
        [message.offset() for message in messages],  # type: ignore[misc]  # and an offset in it
        [message.key() for message in messages],
        [message.value() for message in messages],
        [headers_of(message) or () for message in messages],
        [message.timestamp()[1] for message in messages],
    )


def headers_of(message: KafkaMessage) -> tuple[tuple[str, bytes | None], ...] | None:
    """Return a message's headers; None where one has a name that is not UTF-8, which no record of ours has.

    The client cannot bring such a name into Python. It leaves its list half made, with an error pending, so that
    it is asked once, and by a call that looks for that error: the interpreter's own calls of methods, once warm,
    do not, and would hand the list out.
    """
    try:
        return tuple(_CHECKED_HEADERS(message) or ())
    except SystemError:
        return None


class Opened(NamedTuple):
    """An authentic record before it is known whether it is new."""

    record: Record
    meta: ly.EventMeta
    #: None where its type is not wanted, and where its value does not decode.
    message: Message | None
    #: Where it stands in its producer's chain.
    place: Place

    def event(self) -> Event:
        """Return it as an event; raise BadRecord where its value is none."""
        message = self.message
        return Event(self.record, self.meta, decode(self.record, self.meta) if message is None else message)


class Gatekeeper:
    """Decides what of a partition is new and may be believed; remembers what it let pass."""

    def __init__(self, *, keyring: KeyRing, topics: TopicCatalog, memory: LogMemory | None = None) -> None:
        self._keyring = keyring
        self._authenticated = Authenticator(keyring).authenticate
        self._allowed = topics.allowed
        self.memory = memory or LogMemory()

    def authenticate(self, record: Record) -> ly.EventMeta:
        """Return the meta of an authentic record; raise BadRecord for any other."""
        return open_record(record, keyring=self._keyring, allowed=self._allowed)

    def open(self, record: Record, *, wanted: Container[str]) -> Opened:
        """Return the meta of an authentic record and, of the types that are `wanted`, its message; for one thread.

        Raises:
            BadRecord: it is not authentic.
        """
        meta, message = open_event(
            record,
            keyring=self._keyring,
            allowed=self._allowed,
            wanted=wanted,
            authenticated=self._authenticated,
        )
        return Opened(record, meta, message, Place(meta.producer_id, meta.sequence, meta.event_id))

    def is_new(self, record: Record, meta: Chained) -> bool:
        """Return False for a record that stood in this partition before.

        Raises:
            BadRecord: its event_id or sequence stood there before with another payload.
        """
        judgement, detail = self.memory.judge(record, meta)
        if judgement is Judgement.CONFLICT:
            raise BadRecord(ly.DEAD_LETTER_REASON_CONFLICTING_DUPLICATE, detail)
        return judgement is Judgement.NEW

    def remember(self, record: Record, meta: Chained) -> None:
        """Take note that an event was dealt with, so that it never is again."""
        self.memory.remember(record, meta)

    def decode(self, record: Record, meta: ly.EventMeta) -> Event:
        """Return the event of an authentic record; raise BadRecord where its value is none."""
        return Event(record, meta, decode(record, meta))


#: (topic, partition) of a record.
def place_of(record: Record) -> Position:
    """Return the partition that a record stands in."""
    return (record.topic, record.partition)


def is_stale(event: Event, *, window_seconds: float) -> bool:
    """Return whether the broker appended an event more than `window_seconds` after its producer issued it.

    Both times are the record's own, so an event is judged alike whenever it is read.
    """
    return event.record.append_time_ms - event.meta.time.ToMilliseconds() > window_seconds * 1000
