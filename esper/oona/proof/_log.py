"""Where records come from that are to be proved: a port, and the log in a list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from esper.leyline import Record
from esper.oona._cluster import Position


@dataclass(frozen=True)
class Bounds:
    """What the cluster holds of one partition."""

    #: Kafka's id of the topic, which another topic of the same name does not have.
    topic_id: str
    #: First offset that is there.
    low: int
    #: Offset after the last.
    high: int
    #: Whether the topic keeps everything, so that nothing may be missing at its beginning.
    keeps_all: bool = True


@dataclass(frozen=True)
class Span:
    """Offsets of one partition, from `start` to before `end`."""

    start: int
    end: int


class RecordLog(Protocol):
    """A log whose records can be read by place."""

    def bounds(self) -> Mapping[Position, Bounds]:
        """Return what is there of every partition now."""

    def read(self, spans: Mapping[Position, Span]) -> Iterator[Record]:
        """Yield the records of these spans once, in order of offsets within each partition."""


@dataclass
class ListLog:
    """A log in memory, for records that were read elsewhere; whatever its lists hold is taken as it is."""

    partitions: Mapping[Position, Sequence[Record]]
    topic_ids: Mapping[str, str] = field(default_factory=dict)
    #: First offsets and offsets after the last, where the records do not say them.
    ends: Mapping[Position, tuple[int, int]] = field(default_factory=dict)
    #: Topics that do not keep everything.
    passing: frozenset[str] = frozenset()

    def bounds(self) -> Mapping[Position, Bounds]:
        """Return ids and ends."""
        return {place: self._bounds_of(place, records) for place, records in self.partitions.items()}

    def _bounds_of(self, place: Position, records: Sequence[Record]) -> Bounds:
        topic = place[0]
        default = (records[0].offset, records[-1].offset + 1) if records else (0, 0)
        low, high = self.ends.get(place, default)
        return Bounds(self.topic_ids.get(topic, topic), low, high, topic not in self.passing)

    def read(self, spans: Mapping[Position, Span]) -> Iterator[Record]:
        """Yield partition after partition."""
        for place, span in spans.items():
            for record in self.partitions[place]:
                if span.start <= record.offset < span.end:
                    yield record
