"""Bringing a cluster's topics to what the files say: the differences first, the unsafe ones refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from esper.oona._cluster import RECORD_BYTES_MAX
from esper.oona.topics._specs import KEEP, TopicCatalog, TopicSpec

#: From three replicas on, a write needs two of them, so that one may be lost or behind.
_REPLICAS_FOR_QUORUM: Final = 3

Action = Literal["create", "set", "refuse"]


@dataclass(frozen=True)
class TopicState:
    """One topic as the cluster has it: partition and replica counts, and its effective configuration."""

    partitions: int
    replication_factor: int
    config: Mapping[str, str]


@dataclass(frozen=True)
class TopicChange:
    """One difference between a topic's file and the cluster, and what is to be done about it."""

    topic: str
    action: Action
    #: What differs: "topic", "partitions", "replication_factor" or the name of a Kafka topic setting.
    field: str
    before: str
    after: str
    #: Why it is refused; empty otherwise.
    reason: str = ""


@dataclass(frozen=True)
class TopicPlan:
    """Everything that separates the cluster from the topic files; empty when nothing does."""

    changes: tuple[TopicChange, ...] = ()

    @property
    def refused(self) -> tuple[TopicChange, ...]:
        """The changes that will not be made."""
        return tuple(change for change in self.changes if change.action == "refuse")


def topic_config(spec: TopicSpec, *, replication_factor: int) -> dict[str, str]:
    """Return the Kafka settings of a topic."""
    quorum = 2 if replication_factor >= _REPLICAS_FOR_QUORUM else 1
    return {
        "cleanup.policy": spec.cleanup_policy,
        # Kafka deletes by age and size whoever still needs it; the housekeeper deletes by need (`_retention`).
        "retention.ms": str(KEEP),
        "retention.bytes": str(KEEP),
        # The broker's time orders retention; the time that a producer claims stands in the meta.
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(RECORD_BYTES_MAX),
        # The limit holds for what a record is, not for what it was squeezed into: a batch that unpacks to gigabytes
        # would stand in the log for ever, and every reader would stop at it or run out of memory.
        "compression.type": "uncompressed",
        "min.insync.replicas": str(quorum),
        "unclean.leader.election.enable": "false",
    }


def decide_plan(catalog: TopicCatalog, actual: Mapping[str, TopicState], *, replication_factor: int) -> TopicPlan:
    """Return what separates `actual` from the catalogue; topics that no file names are none of its business."""
    changes: list[TopicChange] = []
    for spec in catalog:
        changes += _refusals_of_file(spec)
        state = actual.get(spec.name)
        if state is None:
            layout = f"{spec.partitions} partitions, {replication_factor} replicas"
            changes.append(TopicChange(spec.name, "create", "topic", "", layout))
        else:
            changes += _differences(spec, state, replication_factor=replication_factor)
    return TopicPlan(tuple(changes))


def _refusals_of_file(spec: TopicSpec) -> Iterable[TopicChange]:
    """Yield what a topic's file asks for and must not get."""
    if "compact" in spec.cleanup_policy:
        reason = "compaction deletes all but the last event of each key; an event topic keeps its history"
        yield TopicChange(spec.name, "refuse", "cleanup.policy", "delete", spec.cleanup_policy, reason)
    for field in ("retention_ms", "retention_bytes"):
        limit: int = getattr(spec, field)
        if spec.truth and limit != KEEP:
            reason = f"the log is the only record of these events; a truth topic keeps everything ({field}: -1)"
            yield TopicChange(spec.name, "refuse", field.replace("_", "."), str(KEEP), str(limit), reason)


def _differences(spec: TopicSpec, state: TopicState, *, replication_factor: int) -> Iterable[TopicChange]:
    if state.partitions != spec.partitions:
        reason = f"keys ({spec.key}) would move to other partitions and lose their order; make a new topic instead"
        before, after = str(state.partitions), str(spec.partitions)
        yield TopicChange(spec.name, "refuse", "partitions", before, after, reason)
    if state.replication_factor != replication_factor:
        reason = "replicas are moved by Kafka's own reassignment tool; ESPER_KAFKA_REPLICATION_FACTOR must say the same"
        before, after = str(state.replication_factor), str(replication_factor)
        yield TopicChange(spec.name, "refuse", "replication_factor", before, after, reason)
    refused = {change.field for change in _refusals_of_file(spec)}
    for name, wanted in topic_config(spec, replication_factor=replication_factor).items():
        found = state.config.get(name, "")
        if found != wanted and name not in refused:
            yield TopicChange(spec.name, "set", name, found, wanted)
