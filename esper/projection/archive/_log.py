"""The log that is sealed: a port, its Kafka adapter, and one over a log in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from esper.core.principals import ADMIN
from esper.oona import Position, TopicCatalog
from esper.oona.copying import GroupOffsets, RawReader, RawRecord, read_groups, topic_ids
from esper.projection.records._source import MemorySource

if TYPE_CHECKING:
    from esper.oona import Fabric

#: The log's own topic: its checkpoints speak of the records of all others.
OPERATIONS: Final = "operations"
#: Kafka's number for the broker's time (KIP-32).
_APPEND_TIME: Final = 2


@dataclass(frozen=True)
class Look:
    """A log at one moment: (low, high) of each partition, and what the groups had committed before."""

    cluster_id: str
    ids: Mapping[str, str]
    ends: Mapping[Position, tuple[int, int]]
    groups: GroupOffsets
    #: Topics of the cluster that no topic file names.
    unknown_topics: Sequence[str] = ()


class SealableLog(Protocol):
    """A log whose records can be read by range."""

    def look(self, topics: Sequence[str]) -> Look:
        """Return where these topics begin and end, and where all groups stand.

        The groups are looked at first, then `operations`, then the rest: what a group has dealt with, and what a
        checkpoint speaks of, is thus within the ends that are read after it.
        """

    def read(self, place: Position, start: int, end: int) -> Iterator[RawRecord]:
        """Yield the records of a range that lies within the ends, in order."""


class KafkaSealable:
    """The topics of a fabric's cluster."""

    def __init__(self, fabric: Fabric) -> None:
        self._cluster = fabric.cluster.as_principal(ADMIN)
        self._catalog: TopicCatalog = fabric.topics
        self._reader: RawReader | None = None

    def look(self, topics: Sequence[str]) -> Look:
        """Ask the cluster; raises BrokerUnavailable."""
        cluster, catalog = self._cluster, self._catalog
        groups = read_groups(cluster, catalog)
        ids = topic_ids(cluster, topics)
        ordered = sorted(topics, key=lambda topic: topic != OPERATIONS)
        ends = {
            place: span
            for topic in ordered  # One request for each, so that one is answered before the next is asked.
            for place, span in cluster.watermarks(catalog.partitions(topic)).items()
        }
        metadata = cluster.metadata()
        unknown = sorted(name for name in metadata.topics if name not in catalog and not name.startswith("__"))
        return Look(str(metadata.cluster_id), ids, ends, groups, unknown)

    def read(self, place: Position, start: int, end: int) -> Iterator[RawRecord]:
        """Yield what the cluster holds; raises as `RawReader.read`."""
        if self._reader is None:
            self._reader = RawReader(self._cluster)
        return self._reader.read(place, start, end)

    def close(self) -> None:
        """Release the connections."""
        if self._reader is not None:
            self._reader.close()


@dataclass
class MemorySealable:
    """A log in memory, for programs and tests without a broker."""

    source: MemorySource
    cluster_id: str = "memory"
    groups: GroupOffsets = field(default_factory=dict)

    def look(self, topics: Sequence[str]) -> Look:
        """Return what the list holds."""
        found = {place: one for place, one in self.source.state().items() if place[0] in topics}
        ends = {place: (one.low, one.high) for place, one in found.items()}
        return Look(self.cluster_id, {place[0]: one.topic_id for place, one in found.items()}, ends, self.groups)

    def read(self, place: Position, start: int, end: int) -> Iterator[RawRecord]:
        """Yield from the list."""
        for record in self.source.records:
            if (record.topic, record.partition) == place and start <= record.offset < end:
                yield RawRecord(record, _APPEND_TIME, 0)
