"""Metrics: counted where it happens, named as the brief names them, seen emitted."""

from __future__ import annotations

import threading
from typing import cast

import pytest

from esper.core.clock import Deadline
from esper.core.ids import new_event_id, new_run_id
from esper.leyline import messages as ly
from esper.oona import ConsumerMetrics, Event, Fabric, PublisherMetrics, build_housekeeper, emission, list_dead_letters
from esper.oona._latency import LatencyHistogram
from esper.oona.housekeeping._metrics import (
    FabricMetrics,
    GroupMetrics,
    SourceMetrics,
    combined,
    metric_points,
    metrics_packet,
    queue_depths,
)
from tests.conftest import RunningBroker
from tests.oona.log import packet, poll_to_end

#: What the brief's cheat sheet asks of Oona, and what carries it.
OF_THE_BRIEF = {
    "queue depths": "oona.queue_depth",
    "breaker of publishing": "oona.breaker.publish_state",
    "breaker of consuming": "oona.breaker.consume_state",
    "conservative mode": "oona.conservative_mode",
    "retries": "oona.retry.total",
    "dead letters": "oona.dead_letter.total",
    "staleness": "oona.stale.dropped",
    "replay": "oona.replay.dropped",
    "latency of publishing": "oona.publish.latency_ms",
    "latency of consuming": "oona.consume.latency_ms",
}


def latency(*seconds: float) -> LatencyHistogram:
    """Return a histogram of durations."""
    histogram = LatencyHistogram()
    for one in seconds:
        histogram.observe(one)
    return histogram


def values(points: list[ly.MetricPoint], name: str, **attributes: str) -> list[float]:
    """Return the values of the points of a name with these attributes."""
    return [
        point.value
        for point in points
        if point.name == name and all(point.attributes.get(key) == value for key, value in attributes.items())
    ]


@pytest.mark.parametrize("quantile", [0.01, 0.5, 0.95, 0.99, 1.0])
def test_quantiles_are_good_to_a_fifth(quantile: float) -> None:
    """A bucket is never below the truth nor far above: observe 1..10,000 ms and compare with the exact quantile."""
    histogram = latency(*(number / 1000 for number in range(1, 10_001)))
    exact = quantile * 10.0
    assert exact * 0.999 <= histogram.quantile_seconds(quantile) <= exact * 1.2


def test_a_histogram_takes_anything_and_says_nothing_when_empty() -> None:
    """Bounds hold: observe zero, a week and nothing; add two up."""
    assert latency().quantile_seconds(0.5) == 0.0
    whole = latency(0.0)
    whole.add(latency(600_000.0))
    assert whole.observed == 2
    assert whole.quantile_seconds(1.0) > 60_000


def test_every_figure_has_its_point() -> None:
    """The snapshot is complete: give each counter its own number and find it under its name."""
    snapshot = FabricMetrics(
        sources={
            "tolaria": SourceMetrics(PublisherMetrics(10, 9, 1, 7, 3), 42, ly.CIRCUIT_STATE_OPEN, latency(0.004)),
        },
        groups={
            "esper.tamiyo": GroupMetrics(
                ConsumerMetrics(
                    read=20, handled=11, retried=5, rejected=4, dead_lettered={"STALE": 2, "REPLAYED": 3, "UNSIGNED": 1}
                ),
                latency(0.002),
            )
        },
        refused={"STALE": 8, "REPLAYED": 9},
        conservative=("publish breaker of tolaria",),
        emergency_level=ly.EMERGENCY_LEVEL_HALT,
        emergency_signals=6,
    )
    points = metric_points(snapshot, {("esper.tamiyo", "system-state"): 12, ("esper.nissa", "telemetry"): 30})
    assert {point.name for point in points} >= set(OF_THE_BRIEF.values())
    assert values(points, "oona.queue_depth", topic="system-state", group="esper.tamiyo") == [12]
    assert values(points, "oona.queue_depth_max") == [30]
    assert values(points, "oona.publish.total", source="tolaria") == [9]
    assert values(points, "oona.publish.failed") == [1]
    assert values(points, "oona.publish.dropped") == [3]
    assert values(points, "oona.publish.backpressure_waits") == [7]
    assert values(points, "oona.publish.backlog") == [42]
    assert values(points, "oona.breaker.publish_state") == [ly.CIRCUIT_STATE_OPEN]
    assert values(points, "oona.breaker.consume_state", group="esper.tamiyo") == [ly.CIRCUIT_STATE_CLOSED]
    assert values(points, "oona.retry.total") == [5]
    assert values(points, "oona.dead_letter.total", reason="UNSIGNED") == [1]
    assert values(points, "oona.stale.dropped", group="esper.tamiyo") == [2]
    assert values(points, "oona.replay.dropped", group="esper.tamiyo") == [3]
    assert values(points, "oona.stale.dropped", group="none") == [8]
    assert values(points, "oona.replay.dropped", group="none") == [9]
    assert values(points, "oona.conservative_mode") == [1.0]
    assert values(points, "oona.emergency.level") == [ly.EMERGENCY_LEVEL_HALT]
    assert values(points, "oona.emergency.total") == [6]
    (p95,) = values(points, "oona.publish.latency_ms", quantile="0.95")
    assert 4.0 <= p95 <= 4.8
    sent = metrics_packet(snapshot, {}, source="oona")
    assert (sent.level, sent.system_health.status) == (ly.TELEMETRY_LEVEL_WARNING, ly.HEALTH_STATUS_DEGRADED)
    assert sent.system_health.summary == "publish breaker of tolaria"
    assert metrics_packet(FabricMetrics(), {}, source="oona").system_health.status == ly.HEALTH_STATUS_HEALTHY


def test_consumers_of_a_group_add_up() -> None:
    """Counters are summed and the worst breaker shown: combine none and three."""
    assert combined([]) == ConsumerMetrics()
    found = combined(
        [
            ConsumerMetrics(read=1, dead_lettered={"STALE": 1}),
            ConsumerMetrics(read=2, breaker="OPEN", dead_lettered={"STALE": 1, "EMPTY": 1}),
            ConsumerMetrics(breaker="HALF_OPEN"),
        ]
    )
    assert (found.read, found.breaker, found.dead_lettered) == (3, "OPEN", {"STALE": 2, "EMPTY": 1})


def test_lag_and_latencies_of_a_real_group(fabric: Fabric) -> None:
    """What a group has yet to read is seen: handle what is there, append three more, ask the cluster."""
    group, run_id = f"esper.test.{new_event_id()[:8]}", new_run_id()
    publisher = fabric.publisher("tolaria")
    # It may have opened with where a publisher of an earlier test ended.
    before = fabric.metrics().sources["tolaria"]
    published, observed = before.counters.acknowledged, before.latency.observed
    publisher.publish(packet(run_id, 0), key=run_id)
    handled: list[Event] = []
    consumer = fabric.consumer(
        group=group,
        instance="member-0",
        topics=["system-state"],
        handlers={ly.SystemStatePacket: handled.append},
        publisher=publisher,
    )
    poll_to_end(consumer, fabric)
    consumer.close()
    assert queue_depths(fabric.cluster, fabric.topics)[(group, "system-state")] == 0
    for epoch in range(1, 4):
        publisher.publish(packet(run_id, epoch), key=run_id)
    assert queue_depths(fabric.cluster, fabric.topics)[(group, "system-state")] == 3
    metrics = fabric.metrics()
    assert metrics.sources["tolaria"].counters.acknowledged - published == 4
    assert metrics.sources["tolaria"].latency.observed - observed == 4
    assert metrics.groups[group].counters.handled == len(handled) == metrics.groups[group].latency.observed
    publisher.close()
    after = fabric.metrics().sources["tolaria"].counters
    assert after.acknowledged - published == 4, "a closed publisher's figures stay"


def test_the_housekeeper_emits_them_at_its_interval(broker: RunningBroker) -> None:
    """Somebody sends them: run the housekeeper with a short interval and read two packets from the topic."""
    settings = broker.settings.model_copy(update={"metrics_seconds": 0.5})
    stop = threading.Event()
    with Fabric.open(settings, member="housekeeper-0") as fabric:
        _, begin = fabric.cluster.watermarks([("telemetry", 0)])[("telemetry", 0)]
        member = build_housekeeper(fabric, instance=f"housekeeper-{new_event_id()[:8]}")
        thread = threading.Thread(target=member.run, args=(stop,))
        thread.start()
        try:
            found = emitted(fabric, begin)
        finally:
            stop.set()
            thread.join(60)
        assert not thread.is_alive()
    names = {point.name for point in found[-1].metrics}
    assert names >= {"oona.queue_depth", "oona.queue_depth_max", "oona.conservative_mode", "oona.retry.total"}
    assert names >= {"oona.breaker.publish_state", "oona.breaker.consume_state", "oona.publish.total"}
    assert values(list(found[-1].metrics), "oona.queue_depth", group="esper.housekeeping")


def test_every_other_member_emits_its_own(broker: RunningBroker) -> None:
    """Goal: what a process counts leaves it, refused commands too. Method: a reader refuses; read the packets."""
    settings = broker.settings.model_copy(update={"metrics_seconds": 0.2})
    run_id = new_run_id()
    with Fabric.open(settings, member="tolaria-3") as fabric, fabric.publisher("tolaria") as publisher:
        _, begin = fabric.cluster.watermarks([("telemetry", 0)])[("telemetry", 0)]
        publisher.publish(packet(run_id, 1), key=run_id)
        place = ("system-state", fabric.partition_of("system-state", run_id))
        with fabric.reader({place: "begin"}, rejects=publisher) as reader:
            (event,) = [one for one in reader.read_to_end() if one.meta.subject == run_id]
            reader.set_aside(event, reason=ly.DEAD_LETTER_REASON_STALE, detail="a test")
            reader.set_aside(event, reason=ly.DEAD_LETTER_REASON_REPLAYED, detail="a test")
        deadline = Deadline(60.0)
        found: list[ly.TelemetryPacket] = []
        with emission(fabric), fabric.reader({("telemetry", 0): begin}) as reader:
            while not found:
                assert not deadline.expired
                packets = [cast("ly.TelemetryPacket", one.message) for one in reader.read(0.5)]
                found = [one for one in packets if one.system_health.indicators["member"] == "tolaria-3"]
        record = (event.topic, event.partition, event.offset)
        letters = [row for row in list_dead_letters(fabric) if (row.topic, row.partition, row.offset) == record]
    points = list(found[0].metrics)
    assert found[0].source_subsystem == "tolaria"
    assert values(points, "oona.stale.dropped") == values(points, "oona.replay.dropped") == [1]
    assert values(points, "oona.publish.total", source="tolaria")[0] >= 1
    assert values(points, "oona.queue_depth_max") == [], "only the housekeeper asks for those"
    assert [row.reason for row in letters] == ["STALE"], "one letter for one record"


def emitted(fabric: Fabric, begin: int) -> list[ly.TelemetryPacket]:
    """Return the housekeeper's packets as soon as there are two that name its own group."""
    deadline = Deadline(90.0)
    found: list[ly.TelemetryPacket] = []
    with fabric.reader({("telemetry", 0): begin}) as reader:
        while len(found) < 2:
            assert not deadline.expired
            packets = [cast("ly.TelemetryPacket", event.message) for event in reader.read(0.5)]
            found += [
                one
                for one in packets
                if one.source_subsystem == "oona"
                and values(list(one.metrics), "oona.queue_depth", group="esper.housekeeping")
            ]
    return found
