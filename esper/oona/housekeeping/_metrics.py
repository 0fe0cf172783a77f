"""The fabric's metrics under the brief's names: counted in each process, emitted as telemetry.

What a process cannot count alone, how far every group is behind, is asked of the cluster (`queue_depths`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Final

from confluent_kafka import ConsumerGroupTopicPartitions

from esper.core.ids import new_event_id
from esper.leyline import messages as ly
from esper.oona._counters import ConsumerMetrics
from esper.oona._failures import answer_of
from esper.oona._latency import LatencyHistogram
from esper.oona.publishing._line import PublisherMetrics

if TYPE_CHECKING:
    from esper.oona._cluster import Cluster, Position
    from esper.oona.topics._specs import TopicCatalog

_REQUEST_SECONDS: Final = 10.0
_QUANTILES: Final = (0.5, 0.95, 0.99)
#: Groups of Esper's own; others' are none of our business.
GROUP_PREFIX: Final = "esper."
_BREAKER_STATES: Final = {
    "CLOSED": ly.CIRCUIT_STATE_CLOSED,
    "HALF_OPEN": ly.CIRCUIT_STATE_HALF_OPEN,
    "OPEN": ly.CIRCUIT_STATE_OPEN,
}
#: Stands for all readers of a process, which have no group.
_READERS: Final = "none"
#: From the best to the worst.
_BREAKERS: Final = ("CLOSED", "HALF_OPEN", "OPEN")


@dataclass(frozen=True)
class SourceMetrics:
    """What was published as one source, by all its publishers of one fabric."""

    counters: PublisherMetrics
    backlog_records: int
    breaker: ly.CircuitBreakerState
    #: From submitting an event to its acknowledgement.
    latency: LatencyHistogram


@dataclass(frozen=True)
class GroupMetrics:
    """What the consumers of one group in one fabric did."""

    counters: ConsumerMetrics
    #: Time in the handler of one event.
    latency: LatencyHistogram


@dataclass(frozen=True)
class FabricMetrics:
    """A snapshot of one process's fabric."""

    sources: Mapping[str, SourceMetrics] = field(default_factory=dict)
    groups: Mapping[str, GroupMetrics] = field(default_factory=dict)
    #: Authentic events that readers without a group refused, by reason: stale commands, copies of used ones.
    refused: Mapping[str, int] = field(default_factory=dict)
    #: Why the fabric is in conservative mode; empty when it is not.
    conservative: tuple[str, ...] = ()
    emergency_level: ly.EmergencyLevel = ly.EMERGENCY_LEVEL_UNSPECIFIED
    emergency_signals: int = 0


#: Records that a group has yet to read in a topic, by (group, topic).
QueueDepths = Mapping[tuple[str, str], int]


def metric_points(metrics: FabricMetrics, depths: QueueDepths | None) -> list[ly.MetricPoint]:
    """Return the points of one snapshot, without queue depths where they were not asked for; pure."""
    return [
        *(_queue_points(depths) if depths is not None else ()),
        *(point for source, found in sorted(metrics.sources.items()) for point in _source_points(source, found)),
        *(point for group, found in sorted(metrics.groups.items()) for point in _group_points(group, found)),
        _point("oona.stale.dropped", metrics.refused.get("STALE", 0), "records", group=_READERS),
        _point("oona.replay.dropped", metrics.refused.get("REPLAYED", 0), "records", group=_READERS),
        _point("oona.conservative_mode", 1.0 if metrics.conservative else 0.0),
        _point("oona.emergency.level", metrics.emergency_level),
        _point("oona.emergency.total", metrics.emergency_signals, "signals"),
    ]


def metrics_packet(
    metrics: FabricMetrics,
    depths: QueueDepths | None,
    *,
    source: str,
    member: str = "",
    events: tuple[ly.TelemetryEvent, ...] = (),
) -> ly.TelemetryPacket:
    """Return the telemetry packet of one snapshot, its meta still empty; WARNING in conservative mode.

    `member` names the process among those of its source.
    """
    degraded = bool(metrics.conservative)
    status = ly.HEALTH_STATUS_DEGRADED if degraded else ly.HEALTH_STATUS_HEALTHY
    return ly.TelemetryPacket(
        packet_id=new_event_id(),
        source_subsystem=source,
        level=ly.TELEMETRY_LEVEL_WARNING if degraded else ly.TELEMETRY_LEVEL_INFO,
        metrics=metric_points(metrics, depths),
        events=events,
        system_health=ly.SystemHealth(
            status=status, summary="; ".join(metrics.conservative), indicators={"member": member}
        ),
    )


def _queue_points(depths: QueueDepths) -> Iterator[ly.MetricPoint]:
    for (group, topic), records in sorted(depths.items()):
        yield _point("oona.queue_depth", records, "records", group=group, topic=topic)
    yield _point("oona.queue_depth_max", max(depths.values(), default=0), "records")


def _source_points(source: str, found: SourceMetrics) -> Iterator[ly.MetricPoint]:
    counters = found.counters
    yield _point("oona.publish.total", counters.acknowledged, "events", source=source)
    yield _point("oona.publish.failed", counters.failed, "events", source=source)
    yield _point("oona.publish.dropped", counters.telemetry_dropped, "packets", source=source)
    yield _point("oona.publish.backpressure_waits", counters.backpressure_waits, "waits", source=source)
    yield _point("oona.publish.backlog", found.backlog_records, "records", source=source)
    yield _point("oona.breaker.publish_state", found.breaker, source=source)
    yield from _latency_points("oona.publish.latency_ms", found.latency, source=source)


def _group_points(group: str, found: GroupMetrics) -> Iterator[ly.MetricPoint]:
    counters = found.counters
    yield _point("oona.consume.total", counters.read, "records", group=group)
    yield _point("oona.consume.handled", counters.handled, "events", group=group)
    yield _point("oona.consume.deduplicated", counters.deduplicated, "records", group=group)
    yield _point("oona.consume.rejected", counters.rejected, "records", group=group)
    yield _point("oona.retry.total", counters.retried, "attempts", group=group)
    yield _point("oona.parked.keys", counters.parked_keys, "keys", group=group)
    yield _point("oona.parked.records", counters.parked_records, "records", group=group)
    yield _point("oona.breaker.consume_state", _BREAKER_STATES[counters.breaker], group=group)
    for reason, count in sorted(counters.dead_lettered.items()):
        yield _point("oona.dead_letter.total", count, "records", group=group, reason=reason)
    yield _point("oona.stale.dropped", counters.dead_lettered.get("STALE", 0), "records", group=group)
    yield _point("oona.replay.dropped", counters.dead_lettered.get("REPLAYED", 0), "records", group=group)
    yield from _latency_points("oona.consume.latency_ms", found.latency, group=group)


def _latency_points(name: str, latency: LatencyHistogram, **attributes: str) -> Iterator[ly.MetricPoint]:
    if not latency.observed:
        return
    for quantile in _QUANTILES:
        milliseconds = latency.quantile_seconds(quantile) * 1000
        yield _point(name, milliseconds, "ms", quantile=f"{quantile:g}", **attributes)


def _point(name: str, value: float, unit: str = "", **attributes: str) -> ly.MetricPoint:
    return ly.MetricPoint(name=name, value=value, unit=unit, attributes=attributes)


def combined(snapshots: Iterable[ConsumerMetrics]) -> ConsumerMetrics:
    """Return the sum of several consumers' counters; of their breakers' states the worst; pure."""
    counted = list(snapshots)
    if not counted:
        return ConsumerMetrics()
    letters: Counter[str] = Counter()
    for one in counted:
        letters.update(one.dead_lettered)
    sums = {
        name.name: sum(getattr(one, name.name) for one in counted)
        for name in fields(ConsumerMetrics)
        if isinstance(name.default, int)
    }
    breaker = max((one.breaker for one in counted), key=_BREAKERS.index)
    return ConsumerMetrics(**sums, dead_lettered=dict(letters), breaker=breaker)


def group_positions(cluster: Cluster, catalog: TopicCatalog) -> dict[str, dict[Position, int]]:
    """Return the committed offsets of every group of Esper's own, for the topics of the catalogue.

    Raises:
        EsperError: the cluster refused to tell, or did not answer.
    """
    what = "the groups' positions cannot be read"
    listing = answer_of(cluster.admin.list_consumer_groups(request_timeout=_REQUEST_SECONDS), what)
    groups = sorted(group.group_id for group in listing.valid if group.group_id.startswith(GROUP_PREFIX))
    asked = {
        group: cluster.admin.list_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(group)], request_timeout=_REQUEST_SECONDS
        )[group]
        for group in groups
    }
    found = {group: answer_of(future, what).topic_partitions or [] for group, future in asked.items()}
    return {
        group: {
            (place.topic, place.partition): place.offset
            for place in places
            if place.offset >= 0 and place.topic in catalog
        }
        for group, places in found.items()
    }


def queue_depths(cluster: Cluster, catalog: TopicCatalog) -> dict[tuple[str, str], int]:
    """Return how many records each group has yet to read, by (group, topic); raises as `group_positions`."""
    positions = group_positions(cluster, catalog)
    ends = cluster.watermarks({place for held in positions.values() for place in held})
    depths: dict[tuple[str, str], int] = {}
    for group, held in positions.items():
        for place, offset in held.items():
            low, high = ends[place]
            behind = max(0, high - max(offset, low))
            depths[(group, place[0])] = depths.get((group, place[0]), 0) + behind
    return depths
