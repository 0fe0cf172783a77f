"""The log of a real cluster, behind the port that proofs read from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from confluent_kafka import TopicCollection

from esper.core.errors import NotReadyError
from esper.leyline import Record
from esper.oona._cluster import Position
from esper.oona.proof._log import Bounds, Span

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric

#: One answer of a broker that is there; one that is away is asked again.
_REQUEST_SECONDS: Final = 5.0
#: What is done with a record costs more than to fetch it, and a fifth less where the batch stays in the core's cache.
_BATCH: Final = 128
_POLL_SECONDS: Final = 0.5
#: A broker that is there and sends nothing for so long will not send what is missing.
_SILENT_POLLS_MAX: Final = 60


class KafkaLog:
    """The topics of a fabric's cluster, read without a group; nothing is verified on the way."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric

    def cluster_id(self) -> str:
        """Return the id that the cluster gave itself."""
        return str(self._fabric.cluster.metadata().cluster_id)

    def topic_ids(self) -> Mapping[str, str]:
        """Return the id of each topic; a topic that was deleted and made again has another.

        Raises:
            NotReadyError: a topic is not there.
            BrokerUnavailable: no broker answered in time.
        """
        topics = [spec.name for spec in self._fabric.topics]
        cluster = self._fabric.cluster

        def ask() -> dict[str, str]:
            futures = cluster.admin.describe_topics(TopicCollection(topics), request_timeout=_REQUEST_SECONDS)
            return {topic: str(future.result().topic_id) for topic, future in futures.items()}

        return cluster.watch("the topics cannot be described").retrying("the topics cannot be described", ask)

    def bounds(self) -> Mapping[Position, Bounds]:
        """Return ids and ends of every partition; raises as `topic_ids`."""
        ids, topics = self.topic_ids(), self._fabric.topics
        places = [place for spec in topics for place in topics.partitions(spec.name)]
        ends = self._fabric.cluster.watermarks(places)
        return {place: Bounds(ids[place[0]], *ends[place], topics[place[0]].truth) for place in places}

    def read(self, spans: Mapping[Position, Span]) -> Iterator[Record]:
        """Yield the records of these spans, the partitions interleaved as the broker sends them.

        Raises:
            NotReadyError: the broker is there but does not send what it says that it holds.
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
            IntegrityError: a span begins where the log holds nothing.
        """
        wanted = {place: span for place, span in spans.items() if span.start < span.end}
        if not wanted:
            return
        silent = 0
        with self._fabric.reader({place: span.start for place, span in wanted.items()}) as reader:
            left = set(wanted)
            while left:  # ends when every span is read, or the broker stays silent
                records = reader.read_raw(_POLL_SECONDS, _BATCH)
                positions = reader.positions()
                left = {place for place in left if positions[place] < wanted[place].end}
                beyond = any(positions[place] > span.end for place, span in wanted.items())
                yield from _within(wanted, records) if beyond else records
                silent = 0 if records else silent + 1
                if silent > _SILENT_POLLS_MAX:
                    raise _silence(left)


def _within(spans: Mapping[Position, Span], records: Sequence[Record]) -> Sequence[Record]:
    return [record for record in records if record.offset < spans[(record.topic, record.partition)].end]


def _silence(left: set[Position]) -> NotReadyError:
    names = ", ".join(sorted(f"{topic}-{partition}" for topic, partition in left))
    return NotReadyError(
        "the log cannot be read to its end",
        cause=f"the broker sent nothing more of {names} for {_SILENT_POLLS_MAX * _POLL_SECONDS:.0f} s",
        next_step="Try again; the broker's log says more",
    )
