"""What became of each record: one disposition for every offset, decided without I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import astuple, dataclass
from enum import StrEnum
from typing import Final, NamedTuple

import pyarrow as pa

from esper.oona import Position
from esper.projection.records._judged import Judged


class Disposition(StrEnum):
    """What a projection did with a record it read."""

    APPLIED = "applied"
    #: Authentic, but of a type that this projection does not take.
    FILTERED = "filtered"
    #: The event stood earlier in the same partition, or its producer was further on already.
    DEDUPLICATED = "deduplicated"
    #: Must not be believed; a dead letter names it.
    DISCARDED = "discarded"


class EventKey(NamedTuple):
    """What makes two records of one partition the same event."""

    topic: str
    partition: int
    event_id: str
    attempt: int | None


class ProducerKey(NamedTuple):
    """One life of one producer on one partition, in which sequences grow."""

    topic: str
    partition: int
    producer_id: str


@dataclass(frozen=True)
class Progress:
    """How far a projection has read one partition, and what became of what it read."""

    topic: str
    partition: int
    topic_id: str
    #: The first offset the log held when the projection began.
    first_offset: int
    next_offset: int
    read: int = 0
    applied: int = 0
    filtered: int = 0
    deduplicated: int = 0
    discarded: int = 0

    @property
    def place(self) -> Position:
        """Topic and partition."""
        return (self.topic, self.partition)

    @property
    def balanced(self) -> bool:
        """Whether the dispositions add up to what was read."""
        return self.read == self.applied + self.filtered + self.deduplicated + self.discarded


@dataclass(frozen=True)
class Entry:
    """One record's line in the ledger."""

    judged: Judged
    disposition: Disposition


PROGRESS_SCHEMA: Final = pa.schema(
    [
        ("topic", pa.string()),
        ("topic_partition", pa.int32()),
        ("topic_id", pa.string()),
        *((name, pa.int64()) for name in ("first_offset", "next_offset", "read")),
        *((name, pa.int64()) for name in ("applied", "filtered", "deduplicated", "discarded")),
    ]
)


def event_key(one: Judged) -> EventKey:
    """Return what identifies an authentic event within its partition."""
    return EventKey(*one.place, one.event_id, one.attempt)


def producer_key(one: Judged) -> ProducerKey:
    """Return what identifies the life of an authentic event's producer within its partition."""
    return ProducerKey(*one.place, one.producer_id)


def classify(
    judged: Iterable[Judged],
    *,
    types: AbstractSet[str],
    known: AbstractSet[EventKey],
    high: Mapping[ProducerKey, int],
) -> list[Entry]:
    """Give each record its disposition. The first offset wins.

    `known` are the events applied before, `high` the highest sequences among them: as for every reader of the log, one
    that is not above its producer's highest was there already. What is filtered moves nothing on, for nobody asks
    whether it is a copy.
    """
    seen, highest = set(known), dict[ProducerKey, int]()
    entries = []
    for one in judged:
        producer = producer_key(one)
        if one.bad is not None:
            disposition = Disposition.DISCARDED
        elif one.type_name not in types:
            disposition = Disposition.FILTERED
        elif event_key(one) in seen or one.sequence <= highest.get(producer, high.get(producer, 0)):
            disposition = Disposition.DEDUPLICATED
        else:
            disposition = Disposition.APPLIED
            seen.add(event_key(one))
            highest[producer] = one.sequence
        entries.append(Entry(one, disposition))
    return entries


def progress_table(progress: Sequence[Progress]) -> pa.Table:
    """Return the progress of partitions as Arrow."""
    rows = [astuple(one) for one in progress]
    arrays = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(PROGRESS_SCHEMA)]
    return pa.Table.from_arrays(arrays, schema=PROGRESS_SCHEMA)
