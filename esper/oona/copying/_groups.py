"""The committed offsets of Esper's groups, with the memory that travels in their metadata (ADR 25)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition

from esper.core.errors import OperationFailed
from esper.oona._cluster import Cluster, Position
from esper.oona._failures import answer_of
from esper.oona.housekeeping._metrics import GROUP_PREFIX
from esper.oona.topics._specs import TopicCatalog

_REQUEST_SECONDS: Final = 10.0


class GroupOffset(NamedTuple):
    """Where a group reads on in a partition, and what it stored with that."""

    offset: int
    metadata: str


GroupOffsets = Mapping[str, Mapping[Position, GroupOffset]]


def read_groups(cluster: Cluster, catalog: TopicCatalog) -> dict[str, dict[Position, GroupOffset]]:
    """Return what every group of Esper's own has committed for the topics of the catalogue.

    Raises:
        EsperError: the cluster refused to tell, or did not answer.
    """
    what = "the groups' offsets cannot be read"
    listing = answer_of(cluster.admin.list_consumer_groups(request_timeout=_REQUEST_SECONDS), what)
    found: dict[str, dict[Position, GroupOffset]] = {}
    for group in sorted(one.group_id for one in listing.valid if one.group_id.startswith(GROUP_PREFIX)):
        asked = [ConsumerGroupTopicPartitions(group)]
        future = cluster.admin.list_consumer_group_offsets(asked, request_timeout=_REQUEST_SECONDS)[group]
        offsets = {
            (one.topic, one.partition): GroupOffset(one.offset, one.metadata or "")
            for one in answer_of(future, what).topic_partitions or []
            if one.offset >= 0 and one.topic in catalog
        }
        if offsets:
            found[group] = offsets
    return found


def write_groups(cluster: Cluster, groups: GroupOffsets) -> None:
    """Commit for groups that have no members what they had committed; writing it again changes nothing.

    Raises:
        OperationFailed: the cluster holds something else afterwards.
        EsperError: the cluster refused.
    """
    for group, offsets in groups.items():
        what = f"the offsets of group {group} cannot be written"
        asked = ConsumerGroupTopicPartitions(
            group, [TopicPartition(*place, one.offset, one.metadata) for place, one in offsets.items()]
        )
        future = cluster.admin.alter_consumer_group_offsets([asked], request_timeout=_REQUEST_SECONDS)[group]
        for place in answer_of(future, what).topic_partitions or []:
            if place.error is not None:
                raise OperationFailed(what, cause=f"{place.topic}-{place.partition}: {place.error.str()}")
        future = cluster.admin.list_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(group, [TopicPartition(*place) for place in offsets])],
            request_timeout=_REQUEST_SECONDS,
        )[group]
        held = {
            (one.topic, one.partition): GroupOffset(one.offset, one.metadata or "")
            for one in answer_of(future, what).topic_partitions or []
        }
        if held != dict(offsets):
            raise OperationFailed(what, cause="the cluster does not hold what was written")
