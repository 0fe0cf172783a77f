"""Asking a cluster about its topics and changing them: the effects behind plan, apply and describe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from esper.core.clock import SYSTEM_CLOCK, Clock, Deadline
from esper.core.errors import NotReadyError, OperationFailed, UsageError
from esper.oona._cluster import Cluster
from esper.oona._failures import answer_of, is_existing_topic
from esper.oona._kafka_admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType
from esper.oona.topics._plan import TopicChange, TopicPlan, TopicState, decide_plan, topic_config
from esper.oona.topics._specs import TopicCatalog

_REQUEST_SECONDS: Final = 10.0
_SETTLE_POLL_SECONDS: Final = 0.05


@dataclass(frozen=True)
class TopicDescription:
    """One topic: what its file says, and what the cluster holds of it."""

    name: str
    why: str
    key: str
    partitions: int
    retention_ms: int
    retention_bytes: int
    truth: bool
    messages: tuple[str, ...]
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    #: False when the cluster lacks it; the fields below are empty then.
    present: bool
    replication_factor: int
    config: Mapping[str, str]
    #: (low, high) of each partition: the first offset it holds and the one after its last.
    offsets: tuple[tuple[int, int], ...]


def plan_topics(cluster: Cluster, catalog: TopicCatalog) -> TopicPlan:
    """Return what separates the cluster from the topic files; changes nothing.

    Raises:
        BrokerUnavailable: no broker answered within `settings.connect_seconds`.
    """
    states = _states(cluster, catalog)
    return decide_plan(catalog, states, replication_factor=cluster.settings.kafka_replication_factor)


def apply_topics(cluster: Cluster, catalog: TopicCatalog) -> TopicPlan:
    """Make the cluster's topics what the files say, and return what was changed.

    Idempotent; topics that no file names are left alone. With one unsafe change nothing is changed at all.

    Raises:
        UsageError: a change is unsafe; the message says which and why.
        BrokerUnavailable: no broker answered within `settings.connect_seconds`.
        EsperError: the cluster refused a change.
    """
    plan = plan_topics(cluster, catalog)
    if plan.refused:
        raise UsageError(
            "the topics were left as they are",
            cause="; ".join(
                f"{change.topic}: {change.field} -> {change.after}: {change.reason}" for change in plan.refused
            ),
            next_step="Correct the topic files; `esper topics plan` shows every difference",
        )
    _create(cluster, [change.topic for change in plan.changes if change.action == "create"], catalog)
    _set(cluster, [change for change in plan.changes if change.action == "set"])
    _await_topics(cluster, catalog)
    return plan


def describe_topics(cluster: Cluster, catalog: TopicCatalog) -> list[TopicDescription]:
    """Return every topic of the catalogue with what the cluster holds of it, by name.

    Raises:
        BrokerUnavailable: no broker answered within `settings.connect_seconds`.
    """
    states = _states(cluster, catalog)
    places = [(name, partition) for name, state in states.items() for partition in range(state.partitions)]
    ends = cluster.watermarks(places, seconds=cluster.settings.connect_seconds)
    described = []
    for spec in sorted(catalog, key=lambda spec: spec.name):
        state = states.get(spec.name)
        fields = spec.model_dump(exclude={"cleanup_policy"})
        described.append(
            TopicDescription(
                **fields,
                present=state is not None,
                replication_factor=state.replication_factor if state else 0,
                config=state.config if state else {},
                offsets=tuple(ends[(spec.name, number)] for number in range(state.partitions)) if state else (),
            )
        )
    return described


def _states(cluster: Cluster, catalog: TopicCatalog) -> dict[str, TopicState]:
    """Return those topics of the catalogue that the cluster has."""
    topics = cluster.metadata().topics
    present = [spec.name for spec in catalog if spec.name in topics]
    configs = _configs(cluster, catalog, present)
    states = {}
    for name in present:
        partitions = topics[name].partitions
        replicas = min((len(partition.replicas) for partition in partitions.values()), default=0)
        states[name] = TopicState(len(partitions), replicas, configs[name])
    return states


def _configs(cluster: Cluster, catalog: TopicCatalog, names: Sequence[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    futures = cluster.admin.describe_configs(resources, request_timeout=_REQUEST_SECONDS)
    answers = {resource.name: answer_of(future, f"topic {resource.name}") for resource, future in futures.items()}
    return {
        name: {
            key: entries[key].value or "" for key in topic_config(catalog[name], replication_factor=1) if key in entries
        }
        for name, entries in answers.items()
    }


def _create(cluster: Cluster, names: Sequence[str], catalog: TopicCatalog) -> None:
    if not names:
        return
    replicas = cluster.settings.kafka_replication_factor
    new = [
        NewTopic(
            name,
            num_partitions=catalog[name].partitions,
            replication_factor=replicas,
            config=topic_config(catalog[name], replication_factor=replicas),
        )
        for name in names
    ]
    futures = cluster.admin.create_topics(new, request_timeout=_REQUEST_SECONDS, operation_timeout=_REQUEST_SECONDS)
    for name, future in futures.items():
        try:
            answer_of(future, f"topic {name} cannot be created")
        except OperationFailed as error:
            # Another `apply` was quicker; whether its topic is as wanted is seen by who waits for all of them.
            if not is_existing_topic(error):
                raise


def _set(cluster: Cluster, changes: Sequence[TopicChange]) -> None:
    resources: dict[str, list[ConfigEntry]] = {}
    for change in changes:
        entry = ConfigEntry(change.field, change.after, incremental_operation=AlterConfigOpType.SET)
        resources.setdefault(change.topic, []).append(entry)
    if not resources:
        return
    asked = [
        ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries) for name, entries in resources.items()
    ]
    futures = cluster.admin.incremental_alter_configs(asked, request_timeout=_REQUEST_SECONDS)
    for resource, future in futures.items():
        answer_of(future, f"topic {resource.name} cannot be changed")


def _await_topics(cluster: Cluster, catalog: TopicCatalog, *, clock: Clock = SYSTEM_CLOCK) -> None:
    """Wait until every partition has a leader and every setting is in force: brokers learn both a little later."""
    deadline = Deadline(cluster.settings.connect_seconds, clock=clock)
    while True:  # ends when all is there, or at the deadline
        topics = cluster.metadata().topics
        led = all(
            spec.name in topics
            and len(topics[spec.name].partitions) == spec.partitions
            and all(partition.leader >= 0 for partition in topics[spec.name].partitions.values())
            for spec in catalog
        )
        if led and not plan_topics(cluster, catalog).changes:
            places = [place for spec in catalog for place in catalog.partitions(spec.name)]
            cluster.watermarks(places, seconds=deadline.remaining_seconds)
            return
        if deadline.expired:
            raise NotReadyError(
                "the topics are not ready",
                cause=f"not all of them have leaders and settings after {cluster.settings.connect_seconds:g} seconds",
                next_step="Run `esper topics plan` to see what is missing",
            )
        clock.sleep(_SETTLE_POLL_SECONDS)
