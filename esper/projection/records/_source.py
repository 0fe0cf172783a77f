"""Where a projection's records come from: a port, its Kafka adapter and one in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from confluent_kafka import TopicCollection

from esper.core.errors import NotReadyError
from esper.core.ids import derive_id
from esper.leyline import Record, RecordColumns
from esper.oona import Position

if TYPE_CHECKING:
    from esper.oona import Fabric, Reader


#: One answer of a broker that is there; one that is away is asked again.
_REQUEST_SECONDS: Final = 5.0
#: What a query sees may be that old; in exchange one commit takes in what a tenth of a second brought.
_GATHER_SECONDS: Final = 0.1


@dataclass(frozen=True)
class PartitionState:
    """What the log holds of one partition: the topic's id, the first offset and the one after the last."""

    topic_id: str
    low: int
    high: int


LogState = Mapping[Position, PartitionState]


class RecordSource(Protocol):
    """Reads raw records of some topics by position; one thread at a time."""

    def topic_ids(self) -> Mapping[str, str]:
        """Return the id of each topic; a topic that was deleted and made again has another."""

    def state(self) -> LogState:
        """Return what the log holds of every partition now."""

    def seek(self, positions: Mapping[Position, int]) -> None:
        """Read on from these offsets, and from these partitions only."""

    def read(self, timeout: float, limit: int) -> RecordColumns:
        """Return the next records, in order within each partition; wait up to `timeout` seconds for the first."""

    def positions(self) -> Mapping[Position, int]:
        """Return the offset of the next record of each partition."""

    def close(self) -> None:
        """Release what the source holds."""


class KafkaSource:
    """The topics of a cluster, read without a group."""

    def __init__(self, fabric: Fabric, topics: Sequence[str]) -> None:
        self._fabric = fabric
        self._topics = tuple(topics)
        self._reader: Reader | None = None

    def topic_ids(self) -> Mapping[str, str]:
        """Return the topics' ids.

        Raises:
            NotReadyError: a topic is not there.
            BrokerUnavailable: no broker answered in time.
        """
        admin = self._fabric.cluster.admin

        def ask() -> dict[str, str]:
            futures = admin.describe_topics(TopicCollection(list(self._topics)), request_timeout=_REQUEST_SECONDS)
            return {topic: str(future.result().topic_id) for topic, future in futures.items()}

        what = f"the topics {', '.join(self._topics)} cannot be described"
        return self._fabric.cluster.watch(what).retrying(what, ask)

    def state(self) -> LogState:
        """Return ids and ends of every partition; raises as `topic_ids`."""
        ids = self.topic_ids()
        places = [place for topic in self._topics for place in self._fabric.topics.partitions(topic)]
        ends = self._fabric.cluster.watermarks(places)
        return {place: PartitionState(ids[place[0]], *ends[place]) for place in places}

    def seek(self, positions: Mapping[Position, int]) -> None:
        """Open a new reader at `positions`."""
        self.close()
        self._reader = self._fabric.reader(dict(positions), gather_seconds=_GATHER_SECONDS)

    def read(self, timeout: float, limit: int) -> RecordColumns:
        """Return the next records.

        Raises:
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
            IntegrityError: the log does not hold the wanted position.
        """
        assert self._reader is not None, "seek comes before read"
        return self._reader.read_columns(timeout, limit)

    def positions(self) -> Mapping[Position, int]:
        """Return where the reader stands."""
        return {} if self._reader is None else self._reader.positions()

    def close(self) -> None:
        """Close the reader."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


@dataclass
class MemorySource:
    """A log in a list, for programs and tests without a broker: append, delete, make anew."""

    partitions: Mapping[str, int]
    records: list[Record] = field(default_factory=list)
    #: How often each topic was deleted and made again.
    lives: dict[str, int] = field(default_factory=dict)
    #: First offset that is still held, where it is not 0.
    low: dict[Position, int] = field(default_factory=dict)
    _next: dict[Position, int] = field(default_factory=dict)

    def topic_ids(self) -> Mapping[str, str]:
        """Return an id for each topic and life."""
        return {topic: derive_id(topic, self.lives.get(topic, 0)) for topic in self.partitions}

    def state(self) -> LogState:
        """Return ids and ends."""
        ids = self.topic_ids()
        return {
            (topic, partition): PartitionState(
                ids[topic], self.low.get((topic, partition), 0), self._high((topic, partition))
            )
            for topic, count in self.partitions.items()
            for partition in range(count)
        }

    def _high(self, place: Position) -> int:
        offsets = [record.offset for record in self.records if (record.topic, record.partition) == place]
        return max(offsets, default=self.low.get(place, 0) - 1) + 1

    def seek(self, positions: Mapping[Position, int]) -> None:
        """Stand at `positions`."""
        unknown = {topic for topic, _ in positions} - self.partitions.keys()
        if unknown:
            raise NotReadyError(f"the topics {', '.join(sorted(unknown))} are not there")
        self._next = dict(positions)

    def read(self, timeout: float, limit: int) -> RecordColumns:
        """Return the next records in the order in which they were appended."""
        found: list[Record] = []
        for record in self.records:
            place = (record.topic, record.partition)
            if record.offset >= self._next.get(place, record.offset + 1) and len(found) < limit:
                found.append(record)
                self._next[place] = record.offset + 1
        return RecordColumns.of(found)

    def positions(self) -> Mapping[Position, int]:
        """Return the next offset of each partition."""
        return dict(self._next)

    def close(self) -> None:
        """Do nothing: the list stays."""
