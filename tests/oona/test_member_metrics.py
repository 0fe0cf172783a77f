"""What a subsystem counts of its own work: under declared names, and in the log."""

from __future__ import annotations

import threading

import pytest

from esper.core.clock import Deadline
from esper.core.ids import new_event_id
from esper.core.settings import load_settings
from esper.leyline import messages as ly
from esper.oona import Fabric, MemberMetrics
from tests.conftest import RunningBroker


def metrics(member: str = "karn-7") -> MemberMetrics:
    """Return metrics with one name of each kind."""
    return MemberMetrics(
        "karn",
        member=member,
        counters={"karn.requests.total": "requests"},
        gauges={"karn.breaker.state": ""},
        latencies=["karn.selection.latency_ms"],
    )


def values(packet: ly.TelemetryPacket) -> dict[tuple[str, str], float]:
    """Return the values of a packet by name and attributes."""
    return {(point.name, ",".join(sorted(point.attributes.values()))): point.value for point in packet.metrics}


def test_counters_begin_at_zero_and_gauges_when_set() -> None:
    """Goal: an alert can tell "none yet" from "not counted". Method: the points of metrics that nobody touched."""
    assert values(metrics().packet()) == {("karn.requests.total", ""): 0.0}


def test_what_was_counted_stands_in_the_packet() -> None:
    """Goal: names, units and attributes arrive. Method: touch one of each kind and read the packet."""
    seen = metrics()
    seen.count("karn.requests.total")
    seen.count("karn.requests.total", 2, layout="vector")
    seen.gauge("karn.breaker.state", 2)
    for _ in range(100):
        seen.observe("karn.selection.latency_ms", 0.004)
    packet = seen.packet()
    found = values(packet)
    assert found["karn.requests.total", ""] == 1.0
    assert found["karn.requests.total", "vector"] == 2.0
    assert found["karn.breaker.state", ""] == seen.value("karn.breaker.state") == 2.0
    for quantile in ("0.5", "0.95", "0.99"):
        assert 4.0 <= found["karn.selection.latency_ms", quantile] <= 4.0 * 2**0.25 + 1e-9
    assert {point.unit for point in packet.metrics} == {"requests", "", "ms"}
    assert (packet.source_subsystem, packet.system_health.indicators["member"]) == ("karn", "karn-7")


def test_names_have_to_be_declared() -> None:
    """Goal: a misspelt name is found at once. Method: use one of each kind that nobody declared, and one of another."""
    seen = metrics()
    with pytest.raises(KeyError, match="no metric"):
        seen.count("karn.request")
    with pytest.raises(KeyError):
        seen.gauge("karn.requests.total", 1.0)
    with pytest.raises(KeyError):
        seen.observe("karn.breaker.state", 1.0)


def test_threads_lose_no_count() -> None:
    """Goal: counters are exact. Method: four threads count at once."""
    seen = metrics()
    threads = [
        threading.Thread(target=lambda: [seen.count("karn.requests.total") for _ in range(2_000)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen.value("karn.requests.total") == 8_000.0


def test_events_go_out_once_and_set_the_level() -> None:
    """Goal: an event is told once, with its level. Method: two packets after one error; and only the latest 100."""
    seen = metrics()
    seen.event("the breaker opened", level=ly.TELEMETRY_LEVEL_ERROR, cause="broker")
    seen.health(ly.HEALTH_STATUS_DEGRADED, "breaker open")
    first, second = seen.packet(), seen.packet()
    assert [event.description for event in first.events] == ["the breaker opened"]
    assert (first.level, second.level) == (ly.TELEMETRY_LEVEL_ERROR, ly.TELEMETRY_LEVEL_INFO)
    assert not second.events
    assert second.system_health.status == ly.HEALTH_STATUS_DEGRADED
    for number in range(150):
        seen.event(f"event {number}")
    assert [event.description for event in seen.packet().events] == [f"event {n}" for n in range(50, 150)]


def test_packets_reach_the_log_while_the_block_runs_and_at_its_end(broker: RunningBroker) -> None:
    """Goal: what a member counts is seen by others. Method: emit on the real broker, await a turn, leave, read."""
    member = f"karn-{new_event_id()[:8]}"
    seen = metrics(member)
    settings = load_settings(**{**broker.settings.model_dump(), "_env_file": None, "metrics_seconds": 0.2})
    with Fabric.open(settings, member="karn-0") as fabric, fabric.reader({("telemetry", 0): "end"}) as reader:

        def packets() -> list[ly.TelemetryPacket]:
            return [
                event.message
                for event in reader.read(0.2)
                if isinstance(event.message, ly.TelemetryPacket)
                and event.message.system_health.indicators["member"] == member
            ]

        with seen.emitted(fabric):
            deadline, before = Deadline(30.0), []
            while not before and not deadline.expired:
                before = packets()
            seen.count("karn.requests.total", 41)
        assert before, "no packet came while the block ran"
        deadline, last = Deadline(30.0), 0.0
        while last != 41.0 and not deadline.expired:
            last = max([last, *(values(packet)["karn.requests.total", ""] for packet in packets())])
        assert last == 41.0, "what was counted last was not told"
