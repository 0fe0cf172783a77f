"""Sampling of telemetry: a function of the backlog, counted, published, and over when the backlog is."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.core.errors import EsperError
from esper.core.ids import new_run_id
from esper.leyline import messages as ly
from esper.oona import Event, Fabric
from esper.oona.publishing._pending import SampledOut
from esper.oona.publishing._sampling import DROPPED_METRIC, NOTHING_FROM, TelemetrySampler, kept_every
from tests.conftest import RunningBroker
from tests.oona.log import packet, read_run


def telemetry(number: int = 0) -> ly.TelemetryPacket:
    """Return a packet that can be told from others."""
    return ly.TelemetryPacket(packet_id=str(number), source_subsystem="tolaria")


def telemetry_since(fabric: Fabric, offset: int) -> list[Event]:
    """Return the telemetry appended from an offset on."""
    with fabric.reader({("telemetry", 0): offset}) as reader:
        return reader.read_to_end()


def dropped_in(events: list[Event]) -> int:
    """Return how many dropped packets the events report."""
    points = [point for event in events for point in cast("ly.TelemetryPacket", event.message).metrics]
    return int(sum(point.value for point in points if point.name == DROPPED_METRIC))


@pytest.mark.parametrize(
    ("backlog", "every"), [(0, 1), (99, 1), (100, 2), (199, 2), (200, 4), (400, 8), (800, 16), (1599, 16), (1600, 0)]
)
def test_pressure_decides_how_much_is_kept(backlog: int, every: int) -> None:
    """Half as much with each doubling, then nothing: look at the steps for a beginning at 100 records."""
    assert kept_every(backlog, begins_records=100) == every


@given(st.integers(0, 10**6), st.integers(1, 5_000), st.booleans())
def test_more_pressure_never_keeps_more(backlog: int, begins: int, conservative: bool) -> None:
    """Sampling is monotonic and needs no memory: compare each backlog with a longer one."""

    def share(records: int) -> float:
        every = kept_every(records, begins_records=begins, conservative=conservative)
        return 1.0 / every if every else 0.0

    assert share(backlog) >= share(backlog + begins) >= share(backlog * 2 + begins)
    assert share(begins * NOTHING_FROM) == 0.0
    assert share(0) == (1 / 16 if conservative else 1.0)


def test_what_is_dropped_is_counted_to_the_last_packet() -> None:
    """Kept and dropped add up: let 1,000 packets through pressure that rises and falls."""
    sampler = TelemetrySampler(begins_records=10)
    kept = sum(sampler.keeps(number % 200, conservative=False) for number in range(1_000))
    assert kept + sampler.dropped == 1_000
    assert 0 < kept < 1_000
    assert sampler.unreported == sampler.dropped
    sampler.reported(sampler.dropped - 3)
    assert sampler.unreported == 3
    assert sum(sampler.keeps(0, conservative=False) for _ in range(50)) == 50, "it recovers with the backlog"


def test_backlog_sheds_telemetry_and_publishes_how_much_but_never_truth(broker: RunningBroker) -> None:
    """Shedding has a price and a witness: submit truth and telemetry in turns with a backlog of one as pressure."""
    settings = broker.settings.model_copy(update={"telemetry_backlog_records": 1})
    run_id = new_run_id()
    with Fabric.open(settings, member="test") as fabric:
        _, begin = fabric.cluster.watermarks([("telemetry", 0)])[("telemetry", 0)]
        publisher = fabric.publisher("tolaria")
        outcomes = []
        for number in range(3_000):
            publisher.submit(packet(run_id, number), key=run_id)
            outcomes.append(publisher.submit(telemetry(number), key="tolaria"))
        shed = [one for one in outcomes if one.sampled_out]
        assert shed, "3,000 records in a row leave a backlog"
        with pytest.raises(SampledOut, match="telemetry is sampled") as caught:
            shed[0].result()
        assert isinstance(caught.value, EsperError)
        publisher.flush()
        assert not publisher.submit(telemetry(9_999), key="tolaria").sampled_out, "pressure is over, and so is sampling"
        publisher.close()
        assert publisher.metrics().telemetry_dropped == len(shed)
        assert publisher.metrics().failed == 0
        events = [event for event in telemetry_since(fabric, begin) if event.meta.producer_id == publisher.producer_id]
        assert dropped_in(events) == len(shed)
        packets = [event for event in events if not cast("ly.TelemetryPacket", event.message).metrics]
        assert len(packets) == 3_001 - len(shed)
        assert [event.meta.sequence for event in events] == list(range(1, len(events) + 1)), "no gap in the chain"
        assert [event.meta.sequence for event in read_run(fabric, "system-state", run_id)] == list(range(1, 3_001))


def test_urgent_telemetry_and_whoever_waits_is_not_sampled(broker: RunningBroker) -> None:
    """Only what nobody waits for is shed: publish, and submit HIGH, while the fabric is in conservative mode."""
    with Fabric.open(broker.settings, member="test") as fabric:
        publisher = fabric.publisher("tolaria")
        publisher._conservative = lambda: True
        routine = [publisher.submit(telemetry(number), key="tolaria") for number in range(32)]
        assert sum(not one.sampled_out for one in routine) == 2, "one in sixteen"
        assert not publisher.submit(telemetry(), key="tolaria", priority=ly.MESSAGE_PRIORITY_HIGH).sampled_out
        assert publisher.publish(telemetry(), key="tolaria").offset >= 0
