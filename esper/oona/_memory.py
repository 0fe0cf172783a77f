"""What of each producer was dealt with, so that a record that returns is known again.

A producer's sequence grows by one from record to record of a partition, and Kafka keeps their order.
A record whose sequence is not above the highest one seen was therefore there before: delivered twice,
or its bytes appended a second time. The highest sequences of a partition travel in the metadata of the
group's committed offset, so that a restarted member knows them without reading its history again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections import OrderedDict
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from esper.leyline import Record

#: 64 bits tell producers apart; a chance collision among a million lives has odds of about 3 in 10^8.
_PRODUCER_BYTES: Final = 8
_SEQUENCE_BYTES: Final = 6
_SEQUENCE_MAX: Final = 2 ** (8 * _SEQUENCE_BYTES) - 1
_ENTRY_BYTES: Final = _PRODUCER_BYTES + _SEQUENCE_BYTES
#: Kafka's default limit for an offset's metadata is 4,096 bytes, which base64 fills to three quarters.
_METADATA_ENTRIES_MAX: Final = 216
_COMPLETE: Final = "esper1c:"
_PARTIAL: Final = "esper1p:"
#: Lives of producers that one partition remembers; beyond, the one that was silent longest is forgotten.
_PRODUCERS_MAX: Final = 100_000
#: Recent events of a partition whose payload is remembered, to tell a copy from a contradiction.
_RECENT_MAX: Final = 1_024
_META_TAG: Final = 0x0A


class Chained(Protocol):
    """Who wrote a record, and as which of his: an EventMeta, or a `Place` taken from one."""

    @property
    def producer_id(self) -> str:
        """One life of one producer."""

    @property
    def sequence(self) -> int:
        """From 1, counted per producer and partition."""

    @property
    def event_id(self) -> str:
        """32 hexadecimal digits."""


class Place(NamedTuple):
    """What is remembered of an event; it stays what it was whatever a handler does with the event's message."""

    producer_id: str
    sequence: int
    event_id: str


class Judgement(Enum):
    """What a record is to a reader who remembers."""

    NEW = "new"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"


class HighWater:
    """The highest sequence of each producer of one partition, bounded, the most recent kept."""

    def __init__(self) -> None:
        self._sequences: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sequences)

    def of(self, producer_id: str) -> int:
        """Return the producer's highest sequence; 0 for one that is not known."""
        return self._sequences.get(_producer_digest(producer_id), 0)

    def advance(self, producer_id: str, sequence: int) -> None:
        """Raise the producer's highest sequence to `sequence` unless it is higher."""
        self._raise(_producer_digest(producer_id), sequence)

    def merge_metadata(self, text: str) -> bool:
        """Take in what `to_metadata` gave; return whether it named every producer of the partition."""
        complete = text.startswith(_COMPLETE)
        if not complete and not text.startswith(_PARTIAL):
            return False
        try:
            packed = base64.b64decode(text[len(_COMPLETE) :].encode(), validate=True)
        except (binascii.Error, ValueError):
            return False
        if len(packed) % _ENTRY_BYTES:
            return False
        for start in range(0, len(packed), _ENTRY_BYTES):
            entry = packed[start : start + _ENTRY_BYTES]
            self._raise(entry[:_PRODUCER_BYTES], int.from_bytes(entry[_PRODUCER_BYTES:], "big"))
        return complete

    def to_metadata(self) -> str:
        """Return the most recent producers and their sequences in at most 4,096 characters."""
        complete = len(self._sequences) <= _METADATA_ENTRIES_MAX
        recent = list(self._sequences.items())[-_METADATA_ENTRIES_MAX:]
        packed = b"".join(digest + sequence.to_bytes(_SEQUENCE_BYTES, "big") for digest, sequence in recent)
        return (_COMPLETE if complete else _PARTIAL) + base64.b64encode(packed).decode()

    def _raise(self, digest: bytes, sequence: int) -> None:
        sequences = self._sequences
        if sequence > sequences.get(digest, -1):
            # A sequence beyond 2^48 cannot be honest; capped, it still counts as the highest.
            sequences[digest] = sequence if sequence <= _SEQUENCE_MAX else _SEQUENCE_MAX
        sequences.move_to_end(digest)
        if len(sequences) > _PRODUCERS_MAX:
            sequences.popitem(last=False)


class _Recent:
    """The payloads of the last events of one partition, by event id and by sequence."""

    def __init__(self) -> None:
        self._payloads: OrderedDict[tuple[str, str], tuple[int, bytes]] = OrderedDict()
        self._ids: dict[tuple[str, int], str] = {}

    def payload(self, producer_id: str, event_id: str) -> bytes | None:
        known = self._payloads.get((producer_id, event_id))
        return known[1] if known else None

    def event_at(self, producer_id: str, sequence: int) -> str | None:
        return self._ids.get((producer_id, sequence))

    def add(self, meta: Chained, payload: bytes) -> None:
        producer, sequence, event = meta.producer_id, meta.sequence, meta.event_id
        self._payloads[(producer, event)] = (sequence, payload)
        self._ids[(producer, sequence)] = event
        if len(self._payloads) > _RECENT_MAX:
            (producer_id, _), (sequence, _) = self._payloads.popitem(last=False)
            self._ids.pop((producer_id, sequence), None)


class LogMemory:
    """What one reader has dealt with, by partition."""

    def __init__(self) -> None:
        self._high: dict[tuple[str, int], HighWater] = {}
        self._recent: dict[tuple[str, int], _Recent] = {}

    def high_water(self, topic: str, partition: int) -> HighWater:
        """Return the high-water sequences of a partition."""
        high_water = self._high.get((topic, partition))
        return high_water if high_water is not None else self._high.setdefault((topic, partition), HighWater())

    def judge(self, record: Record, meta: Chained) -> tuple[Judgement, str]:
        """Return what an authentic record is, and in words why it is a conflict.

        Events of one producer are compared with each other only: two attempts of one run may name their
        events alike, and which of them counts is for the readers of that topic to say.
        """
        recent = self._recent.get((record.topic, record.partition))
        known = recent.payload(meta.producer_id, meta.event_id) if recent else None
        if known is not None:
            if known == payload_digest(record.value or b""):
                return Judgement.DUPLICATE, ""
            return Judgement.CONFLICT, f"event {meta.event_id} stood earlier in this partition with another payload"
        if meta.sequence > self.high_water(record.topic, record.partition).of(meta.producer_id):
            return Judgement.NEW, ""
        other = recent.event_at(meta.producer_id, meta.sequence) if recent else None
        if other is not None:
            return Judgement.CONFLICT, f"sequence {meta.sequence} of {meta.producer_id} was event {other} before"
        return Judgement.DUPLICATE, ""

    def remember(self, record: Record, meta: Chained) -> None:
        """Take note that a record was dealt with."""
        self.high_water(record.topic, record.partition).advance(meta.producer_id, meta.sequence)
        place = (record.topic, record.partition)
        recent = self._recent.get(place)
        if recent is None:
            recent = self._recent[place] = _Recent()
        recent.add(meta, payload_digest(record.value or b""))


def payload_digest(value: bytes) -> bytes:
    """Return the SHA-256 of an event's bytes without its leading meta field.

    The meta differs between two copies that a producer made of one event; what it says does not. A value
    whose first field is not the meta is hashed whole.
    """
    return hashlib.sha256(value[_meta_end(value) :]).digest()


def _meta_end(value: bytes) -> int:
    """Return where the leading field 1 (tag, varint length, bytes) ends; 0 when there is none."""
    if not value or value[0] != _META_TAG:
        return 0
    if len(value) > 2 and value[2] < 0x80 <= value[1]:  # A meta has 128 bytes and more, hardly ever 16 KiB.
        return 3 + (value[1] & 0x7F | value[2] << 7)
    length, shift = 0, 0
    for index in range(1, min(len(value), 6)):
        length |= (value[index] & 0x7F) << shift
        if value[index] < 0x80:
            return index + 1 + length
        shift += 7
    return 0


#: A producer writes many events, and few write at a time.
@lru_cache(maxsize=4096)
def _producer_digest(producer_id: str) -> bytes:
    return hashlib.sha256(producer_id.encode()).digest()[:_PRODUCER_BYTES]
