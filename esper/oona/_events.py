"""From Kafka's message to an event that may be believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from confluent_kafka import Message as KafkaMessage
from google.protobuf.message import Message

from esper.leyline import BadRecord, KeyRing, Record, decode, open_record
from esper.leyline import messages as ly
from esper.oona._cluster import Position
from esper.oona._memory import Judgement, LogMemory
from esper.oona.topics._specs import TopicCatalog


@dataclass(frozen=True)
class Event:
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
    headers = cast("list[tuple[str, str | bytes | None]]", message.headers() or [])
    return Record(
        topic=topic,
        partition=partition,
        offset=offset,
        key=_bytes(message.key()),
        value=_bytes(message.value()),
        headers=tuple((name, _bytes(value)) for name, value in headers),
        append_time_ms=message.timestamp()[1],
    )


def _bytes(raw: str | bytes | None) -> bytes | None:
    return raw.encode() if isinstance(raw, str) else raw


class Gatekeeper:
    """Decides what of a partition is new and may be believed; remembers what it let pass."""

    def __init__(self, *, keyring: KeyRing, topics: TopicCatalog, memory: LogMemory | None = None) -> None:
        self._keyring = keyring
        self._topics = topics
        self.memory = memory or LogMemory()

    def authenticate(self, record: Record) -> ly.EventMeta:
        """Return the meta of an authentic record; raise BadRecord for any other."""
        return open_record(record, keyring=self._keyring, allowed=self._topics.allowed)

    def is_new(self, record: Record, meta: ly.EventMeta) -> bool:
        """Return False for a record that stood in this partition before.

        Raises:
            BadRecord: its event_id or sequence stood there before with another payload.
        """
        judgement, detail = self.memory.judge(record, meta)
        if judgement is Judgement.CONFLICT:
            raise BadRecord(ly.DEAD_LETTER_REASON_CONFLICTING_DUPLICATE, detail)
        return judgement is Judgement.NEW

    def remember(self, record: Record, meta: ly.EventMeta) -> None:
        """Take note that an event was dealt with, so that it never is again."""
        self.memory.remember(record, meta)

    def decode(self, record: Record, meta: ly.EventMeta) -> Event:
        """Return the event of an authentic record; raise BadRecord where its value is none."""
        return Event(record, meta, decode(record, meta))


#: (topic, partition) of a record.
def place_of(record: Record) -> Position:
    """Return the partition that a record stands in."""
    return (record.topic, record.partition)
