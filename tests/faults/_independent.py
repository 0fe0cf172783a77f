"""A reader of the topics that uses nothing of the fabric: the Kafka client, the wire format and HMAC from the books.

Written from docs/adr/0001 (what is signed), 0005 (ids; the first offset counts), 0006 (chains), 0025 (sequences) and
the numbers of the fields in proto/. It believes no record whose signature does not hold, and says what is wrong.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, cast

from confluent_kafka import Consumer, Message, TopicPartition

_DOMAIN: Final = b"esper-record-v1"
_MAC_KEY_DOMAIN: Final = b"esper-leyline-mac-key-v1\x01"
_KEY_ID_DOMAIN: Final = b"esper-leyline-key-id-v1"
_KEY_ID_BYTES: Final = 8
_READ_SECONDS: Final = 300.0
#: Fields of EventMeta, which is field 1 of every event.
_META, _EVENT_ID, _TYPE, _SUBJECT, _CAUSE, _PRODUCER, _SEQUENCE, _PREVIOUS = 1, 1, 2, 5, 8, 9, 10, 11
_TEXTS: Final = (_EVENT_ID, _TYPE, _SUBJECT, _CAUSE, _PRODUCER)

Place = tuple[str, int]


class Raw(NamedTuple):
    """One record as the client hands it over."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


@dataclass(slots=True)
class Entry:
    """One record whose signature holds."""

    topic: str
    partition: int
    offset: int
    key: str
    type: str
    event_id: str
    cause: str
    producer: str
    sequence: int
    previous: bytes
    mac: bytes
    #: The event without its meta, field by field; of a repeated field all values.
    fields: dict[int, list[int | bytes]]
    #: SHA-256 of the same bytes.
    payload: bytes

    def number(self, which: int) -> int:
        """Return an integer field; 0 when it is absent, as in proto3."""
        value = self.fields.get(which, [0])[-1]
        assert isinstance(value, int), f"field {which} of {self.type} is no integer"
        return value

    def content(self, which: int) -> bytes:
        """Return a field of bytes, text or a message; empty when it is absent."""
        value = self.fields.get(which, [b""])[-1]
        assert isinstance(value, bytes), f"field {which} of {self.type} is an integer"
        return value


class Finding(NamedTuple):
    """One thing that must not be: its kind, where, and what exactly."""

    kind: str
    where: str
    detail: str


# Kafka -------------------------------------------------------------------------------------------------------


def read_topics(bootstrap: str, topics: Sequence[str]) -> Iterator[Raw]:
    """Give every record that the topics hold now, each partition in order of its offsets."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "independent-reader",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_uncommitted",
        }
    )
    try:
        found = {topic: consumer.list_topics(topic, timeout=30).topics[topic].partitions for topic in topics}
        places = [(topic, partition) for topic, partitions in found.items() for partition in partitions]
        ends = {place: consumer.get_watermark_offsets(TopicPartition(*place), timeout=30) for place in places}
        consumer.assign([TopicPartition(*place, ends[place][0]) for place in places])
        left = {place for place, (low, high) in ends.items() if low < high}
        until = time.monotonic() + _READ_SECONDS
        while left:
            assert time.monotonic() < until, f"{left} were not read within {_READ_SECONDS} s"
            for message in consumer.consume(1000, 1.0):
                record = _raw(message)
                place = (record.topic, record.partition)
                if record.offset < ends[place][1]:
                    yield record
                if record.offset >= ends[place][1] - 1:
                    left.discard(place)
    finally:
        consumer.close()


def _raw(message: Message) -> Raw:
    """Return a message of the client as a record; what it lacks is empty, and no signature holds over it."""
    assert message.error() is None, message.error()
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None, "a record has a topic"
    assert partition is not None, "a record has a partition"
    assert offset is not None, "a record has an offset"
    headers = cast("list[tuple[str, bytes]]", message.headers() or [])
    return Raw(topic, partition, offset, message.key() or b"", message.value() or b"", tuple(headers))


# Protobuf's wire format --------------------------------------------------------------------------------------


def varint(content: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at a place, and where it ends."""
    value, shift = 0, 0
    while True:  # ends with the number's last byte, or with an IndexError
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def wire_fields(content: bytes) -> Iterator[tuple[int, int | bytes, int]]:
    """Give number, value and end of each field of a message, in the order of its bytes."""
    at = 0
    while at < len(content):
        tag, at = varint(content, at)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == 0:
            value, at = varint(content, at)
        else:
            assert kind in (1, 2, 5), f"wire type {kind}"
            length, at = varint(content, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = content[at : at + length], at + length
        yield number, value, at
    assert at == len(content), "the message is cut off"


# Records -----------------------------------------------------------------------------------------------------


@dataclass
class _Life:
    """The end of one producer's chain on one partition."""

    sequence: int = 0
    mac: bytes = b""


@dataclass
class Log:
    """What the records say, taken one after the other in the order of each partition."""

    secret: bytes
    findings: list[Finding] = field(default_factory=list)
    #: Every record that may be believed, by topic and partition, by offset.
    entries: dict[Place, dict[int, Entry]] = field(default_factory=dict)
    #: Each event of a topic once: the first offset counts.
    events: dict[str, dict[str, Entry]] = field(default_factory=dict)
    #: Records of an event that stood in its topic before.
    copies: Counter[str] = field(default_factory=Counter)
    _lives: dict[tuple[str, Place], _Life] = field(default_factory=dict)
    _homes: dict[tuple[str, str], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._key_id = hmac.digest(self.secret, _KEY_ID_DOMAIN, "sha256")[:_KEY_ID_BYTES]
        self._mac_key = hmac.digest(self.secret, _MAC_KEY_DOMAIN, "sha256")

    @property
    def lives(self) -> int:
        """Lives of producers."""
        return len({producer for producer, _ in self._lives})

    def take_all(self, records: Iterable[Raw]) -> Log:
        """Take every record, and return this log."""
        for record in records:
            self.take(record)
        return self

    def take(self, record: Raw) -> None:
        """Take one more record of a partition."""
        where = f"{record.topic}-{record.partition}-{record.offset}"
        entry = self._believed(record, where)
        if entry is None:
            return
        place = (record.topic, record.partition)
        known = self.entries.setdefault(place, {})
        if record.offset != len(known):
            self.findings.append(Finding("hole", where, f"offset {len(known)} was expected"))
        known[record.offset] = entry
        if self._homes.setdefault((entry.topic, entry.key), entry.partition) != entry.partition:
            self.findings.append(Finding("misplaced", where, f"key {entry.key} lives on two partitions"))
        if self._continues_chain(entry, place, where):
            self._count(entry, where)

    def _believed(self, record: Raw, where: str) -> Entry | None:
        """Return the record's entry if its signature holds over its bytes at its place."""
        headers = dict(record.headers)
        signature, type_name = headers.get("signature", b""), headers.get("type", b"")
        partition = record.partition.to_bytes(4, "big")
        signed = (_DOMAIN, record.topic.encode(), partition, record.key, type_name, record.value)
        expected = hmac.digest(self._mac_key, b"".join(len(one).to_bytes(4, "big") + one for one in signed), "sha256")
        if not hmac.compare_digest(signature, self._key_id + expected):
            self.findings.append(Finding("signature", where, "the signature does not hold"))
            return None
        entry = _entry(record, expected)
        if entry.key.encode() != record.key or entry.type.encode() != type_name:
            self.findings.append(Finding("signature", where, "the meta names another key or type than the record"))
            return None
        return entry

    def _continues_chain(self, entry: Entry, place: Place, where: str) -> bool:
        """Check an entry's link; False for a sequence that was there before, which readers do not handle again."""
        life = self._lives.setdefault((entry.producer, place), _Life())
        if entry.sequence != life.sequence + 1 or entry.previous != life.mac:
            detail = f"sequence {entry.sequence} of {entry.producer} follows {life.sequence}"
            self.findings.append(Finding("chain", where, detail))
        if entry.sequence <= life.sequence:
            return False
        life.sequence, life.mac = entry.sequence, entry.mac
        return True

    def _count(self, entry: Entry, where: str) -> None:
        """Let the first offset of an event count, and compare every other record of it."""
        first = self.events.setdefault(entry.topic, {}).setdefault(entry.event_id, entry)
        if first is entry:
            return
        self.copies[entry.topic] += 1
        if (first.payload, first.key, first.cause) != (entry.payload, entry.key, entry.cause):
            detail = f"event {entry.event_id} says something else than at offset {first.offset}"
            self.findings.append(Finding("contradiction", where, detail))


def _entry(record: Raw, mac: bytes) -> Entry:
    meta: dict[int, int | bytes] = {}
    fields: dict[int, list[int | bytes]] = {}
    payload, start = hashlib.sha256(), 0
    for number, value, end in wire_fields(record.value):
        if number == _META and isinstance(value, bytes):
            meta |= {name: content for name, content, _ in wire_fields(value)}
        else:
            fields.setdefault(number, []).append(value)
            payload.update(record.value[start:end])
        start = end
    texts = {number: value.decode() for number in _TEXTS if isinstance(value := meta.get(number, b""), bytes)}
    sequence, previous = meta.get(_SEQUENCE, 0), meta.get(_PREVIOUS, b"")
    assert isinstance(sequence, int), "a sequence is an integer"
    assert isinstance(previous, bytes), "a MAC is bytes"
    return Entry(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=texts.get(_SUBJECT, ""),
        type=texts.get(_TYPE, ""),
        event_id=texts.get(_EVENT_ID, ""),
        cause=texts.get(_CAUSE, ""),
        producer=texts.get(_PRODUCER, ""),
        sequence=sequence,
        previous=previous,
        mac=mac,
        fields=fields,
        payload=payload.digest(),
    )
