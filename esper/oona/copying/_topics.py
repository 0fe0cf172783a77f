"""Topics that take a copy: made under CreateTime, emptied up to where the copy begins, and taken away again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from confluent_kafka import KafkaException, TopicCollection, TopicPartition

from esper.core.clock import SYSTEM_CLOCK, Clock, Deadline
from esper.core.errors import NotReadyError
from esper.oona._cluster import Cluster, Position
from esper.oona._failures import answer_of
from esper.oona._kafka_admin import NewTopic
from esper.oona.topics._plan import topic_config
from esper.oona.topics._specs import TopicCatalog

_REQUEST_SECONDS: Final = 10.0
_SETTLE_SECONDS: Final = 0.05
#: Of producers' own times; `esper topics apply` sets it back.
_KEEPS_TIMES: Final = {"message.timestamp.type": "CreateTime"}


def ends_of(cluster: Cluster, catalog: TopicCatalog) -> Mapping[Position, tuple[int, int]]:
    """Return (low, high) of every partition of those topics of the catalogue that the cluster has.

    Raises:
        BrokerUnavailable: no broker answered.
    """
    present = cluster.metadata().topics
    places = [
        (spec.name, partition)
        for spec in catalog
        if spec.name in present
        for partition in range(len(present[spec.name].partitions))
    ]
    return cluster.watermarks(places)


def topic_ids(cluster: Cluster, topics: Sequence[str]) -> Mapping[str, str]:
    """Return Kafka's id of each topic.

    Raises:
        NotReadyError: a topic is not there.
        BrokerUnavailable: no broker answered.
    """
    what = "the topics cannot be described"

    def ask() -> dict[str, str]:
        futures = cluster.admin.describe_topics(TopicCollection(list(topics)), request_timeout=_REQUEST_SECONDS)
        return {topic: str(future.result().topic_id) for topic, future in futures.items()}

    return cluster.watch(what).retrying(what, ask) if topics else {}


def create_for_copy(cluster: Cluster, catalog: TopicCatalog, *, clock: Clock = SYSTEM_CLOCK) -> None:
    """Create the topics of the catalogue that are missing, as their files say but keeping producers' times.

    Raises:
        NotReadyError: they have no leaders after `settings.connect_seconds`.
        EsperError: the cluster refused.
    """
    present = cluster.metadata().topics
    replicas = cluster.settings.kafka_replication_factor
    new = [
        NewTopic(
            spec.name,
            num_partitions=spec.partitions,
            replication_factor=replicas,
            config=topic_config(spec, replication_factor=replicas) | _KEEPS_TIMES,
        )
        for spec in catalog
        if spec.name not in present
    ]
    if new:
        futures = cluster.admin.create_topics(new, request_timeout=_REQUEST_SECONDS, operation_timeout=_REQUEST_SECONDS)
        for name, future in futures.items():
            answer_of(future, f"topic {name} cannot be created")
    deadline = Deadline(cluster.settings.connect_seconds, clock=clock)
    while not _led(cluster, catalog):  # ends when all have leaders, or at the deadline
        if deadline.expired:
            raise NotReadyError("the topics are not ready", cause="not all of them have leaders")
        clock.sleep(_SETTLE_SECONDS)
    ends_of(cluster, catalog)


def delete_topics(cluster: Cluster, topics: Collection[str], *, clock: Clock = SYSTEM_CLOCK) -> None:
    """Delete topics with all that they hold, and wait until they are gone.

    Raises:
        NotReadyError: they are still there after `settings.connect_seconds`.
        EsperError: the cluster refused.
    """
    if not topics:
        return
    futures = cluster.admin.delete_topics(
        sorted(topics), request_timeout=_REQUEST_SECONDS, operation_timeout=_REQUEST_SECONDS
    )
    for name, future in futures.items():
        answer_of(future, f"topic {name} cannot be deleted")
    deadline = Deadline(cluster.settings.connect_seconds, clock=clock)
    while left := [topic for topic in topics if topic in cluster.metadata().topics]:
        if deadline.expired:
            raise NotReadyError("the topics cannot be deleted", cause=f"{', '.join(left)} are still there")
        clock.sleep(_SETTLE_SECONDS)


def trim(cluster: Cluster, place: Position, before: int, *, clock: Clock = SYSTEM_CLOCK) -> None:
    """Delete the records of a partition before an offset, and wait until it begins there.

    Raises:
        NotReadyError: it does not within `settings.connect_seconds`.
        EsperError: the cluster refused.
    """
    what = f"{place[0]}-{place[1]} cannot begin at offset {before}"
    asked = [TopicPartition(*place, before)]
    for future in cluster.admin.delete_records(asked, request_timeout=_REQUEST_SECONDS).values():
        answer_of(future, what)
    deadline = Deadline(cluster.settings.connect_seconds, clock=clock)
    while cluster.watermarks([place])[place][0] < before:
        if deadline.expired:
            raise NotReadyError(what, cause="the broker deleted nothing")
        clock.sleep(_SETTLE_SECONDS)


def _led(cluster: Cluster, catalog: TopicCatalog) -> bool:
    try:
        topics = cluster.metadata().topics
    except KafkaException:
        return False
    return all(
        spec.name in topics
        and len(topics[spec.name].partitions) == spec.partitions
        and all(partition.leader >= 0 for partition in topics[spec.name].partitions.values())
        for spec in catalog
    )
