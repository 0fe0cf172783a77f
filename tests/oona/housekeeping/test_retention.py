"""Retention: what a file lets go, never past what somebody needs, and why not."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.core.clock import SYSTEM_CLOCK, ManualClock
from esper.core.ids import new_event_id
from esper.leyline import messages as ly
from esper.oona import Fabric, TopicCatalog, TopicSpec
from esper.oona.housekeeping._reports import Reports
from esper.oona.housekeeping._retention import (
    Holding,
    Need,
    RetentionDecision,
    apply_retention,
    decide_retention,
    first_that_fits,
    needs_of_archive,
    needs_of_groups,
    needs_of_projections,
    plan_retention,
)
from tests.oona.log import poll_to_end

PLACE = ("telemetry", 0)
SPEC = TopicSpec(
    name="telemetry",
    why="test",
    key="source",
    partitions=1,
    retention_ms=1000,
    truth=False,
    messages=("TelemetryPacket",),
    writers=("all",),
    readers=("all",),
)
WEEK_MS = 7 * 24 * 3600 * 1000


def holding(**update: int) -> Holding:
    """Return a partition with the offsets 10 to 99, of which those before 60 are too old."""
    fields = {"low": 10, "high": 100, "young_from": 60, "fits_from": 10, **update}
    return Holding(PLACE, **fields)


def test_what_is_too_old_or_too_much_goes() -> None:
    """Age and size both count: decide with either limit ahead of the other."""
    assert decide_retention(SPEC, holding(), []).delete_before == 60
    assert decide_retention(SPEC, holding(fits_from=80), []).delete_before == 80
    everything = decide_retention(SPEC, holding(young_from=100), [])
    assert (everything.delete_before, everything.reason) == (100, "")


def test_truth_loses_nothing() -> None:
    """No limit holds for truth: decide the same for a truth topic."""
    assert decide_retention(SPEC.model_copy(update={"truth": True}), holding(), []).delete_before == 10


def test_nothing_goes_that_somebody_needs_and_the_reason_names_him() -> None:
    """The lowest need is the limit: two groups, an archive that lags, and one who needs nothing of it."""
    needs = [
        Need("esper.nissa", 40, "it has not read further"),
        Need("archive", 25, "it has sealed no further"),
        Need("esper.fast", 90, "it has not read further"),
    ]
    decision = decide_retention(SPEC, holding(), needs)
    assert (decision.wanted_before, decision.delete_before, decision.held_records) == (60, 25, 35)
    assert [need.holder for need in decision.held_by] == ["archive", "esper.nissa"]
    assert decision.reason == (
        "telemetry-0: 35 expired records stay: archive needs offset 25 on (it has sealed no further); "
        "esper.nissa needs offset 40 on (it has not read further)"
    )
    assert decide_retention(SPEC, holding(), [Need("esper.new", 0, "x")]).delete_before == 10, (
        "never below the low mark"
    )


def test_projections_need_what_no_archive_holds() -> None:
    """A rebuild starts at the first record: with no archive, with one, and for a topic that nothing is made from."""
    assert needs_of_projections({"telemetry"}, PLACE, archived=0, low=10)[0].offset == 10
    assert needs_of_projections({"telemetry"}, PLACE, archived=50, low=10)[0].offset == 50
    assert needs_of_projections({"runs"}, PLACE, archived=0, low=10) == []
    assert needs_of_groups({"esper.a": {PLACE: 5}, "esper.b": {("runs", 0): 1}}, PLACE)[0].holder == "esper.a"


def test_what_the_archive_seals_goes_no_further_than_it() -> None:
    """Retention never passes the last sound segment: a mark within what expired, and a partition that no seal names."""
    needs = needs_of_archive({PLACE: 40}, PLACE)
    decision = decide_retention(SPEC, Holding(PLACE, 10, 100, 90, 10), needs)
    assert decision.delete_before == 40
    assert [need.holder for need in decision.held_by] == ["archive"]
    assert needs_of_archive({("runs", 0): 40}, PLACE) == []


@given(
    st.integers(0, 1_000),
    st.integers(0, 1_000),
    st.integers(-10, 3_000),
    st.integers(-10, 3_000),
    st.lists(st.integers(0, 3_000), max_size=5),
)
def test_no_need_is_ever_cut(low: int, length: int, young: int, fits: int, needed: list[int]) -> None:
    """Whatever the limits say, every need is kept and the counts add up: decide random partitions."""
    high = low + length
    needs = [Need(str(number), offset, "x") for number, offset in enumerate(needed)]
    decision = decide_retention(SPEC, Holding(PLACE, low, high, young, fits), needs)
    assert low <= decision.delete_before <= decision.wanted_before <= high
    assert all(decision.delete_before <= max(offset, low) for offset in needed)
    assert bool(decision.reason) == (decision.held_records > 0)


@pytest.mark.parametrize(("bytes_max", "first"), [(1_000, 90), (10_000, 10), (0, 100)])
def test_size_is_kept_by_the_mean_record(bytes_max: int, first: int) -> None:
    """So many records fit: 90 records of 100 bytes under three limits."""
    assert first_that_fits(10, 100, bytes_max=bytes_max, record_bytes=100.0) == first


def fill(fabric: Fabric, count: int) -> int:
    """Append telemetry; return the offset after it."""
    with fabric.publisher("nissa") as publisher:
        for number in range(count):
            last = publisher.submit(
                ly.TelemetryPacket(packet_id=str(number) + "x" * 200), key="nissa", priority=ly.MESSAGE_PRIORITY_HIGH
            )
        return last.result().offset + 1


def later(seconds: float) -> ManualClock:
    """Return a clock that is ahead of the broker's by that much."""
    return ManualClock(wall_ns=SYSTEM_CLOCK.now_ns() + int(seconds * 1e9))


@pytest.fixture
def scratch(scratch: Fabric) -> Iterator[Fabric]:
    """Return the scratch fabric; afterwards its telemetry is empty again and its topics are its own."""
    topics = scratch.topics
    yield scratch
    scratch.topics = topics
    low, high = scratch.cluster.watermarks([PLACE])[PLACE]
    apply_retention(scratch, [RetentionDecision(PLACE, low, high, high)])


def with_limits(fabric: Fabric, **update: object) -> None:
    """Give the fabric's telemetry other limits."""
    specs = [spec.model_copy(update=update) if spec.name == "telemetry" else spec for spec in fabric.topics]
    fabric.topics = TopicCatalog(specs)


def test_age_size_and_needs_on_the_real_broker(scratch: Fabric, caplog: pytest.LogCaptureFixture) -> None:
    """Records really go, and stay while a group has not read them: fill, hold back, read on, delete by age and size."""
    fabric, group = scratch, f"esper.nissa.{new_event_id()[:8]}"
    end = fill(fabric, 200)
    low, _ = fabric.cluster.watermarks([PLACE])[PLACE]
    (fresh,) = plan_retention(fabric)
    assert fresh.delete_before == low, "nothing is a week old"

    publisher = fabric.publisher("nissa")
    consumer = fabric.consumer(group=group, instance="member-0", topics=["telemetry"], handlers={}, publisher=publisher)
    poll_to_end(consumer, fabric)
    consumer.close()
    end = fill(fabric, 100)
    (aged,) = plan_retention(fabric, clock=later(WEEK_MS / 1000 + 60))
    assert (aged.wanted_before, aged.delete_before) == (end, end - 100), "the group has not read the last hundred"
    with caplog.at_level(logging.WARNING, logger="esper.oona.retention"):
        apply_retention(fabric, [aged])
    assert f"telemetry-0: 100 expired records stay: {group} needs offset {end - 100} on" in caplog.text
    assert fabric.cluster.watermarks([PLACE])[PLACE] == (end - 100, end)

    with fabric.consumer(
        group=group, instance="member-0", topics=["telemetry"], handlers={}, publisher=publisher
    ) as again:
        poll_to_end(again, fabric)
    with_limits(fabric, retention_ms=-1, retention_bytes=10_000)
    (sized,) = plan_retention(fabric)
    assert end - 60 < sized.delete_before < end - 15, "10,000 bytes are some 30 records of 300 bytes"
    apply_retention(fabric, [sized])
    assert fabric.cluster.watermarks([PLACE])[PLACE] == (sized.delete_before, end)

    (rebuilt,) = plan_retention(fabric, rebuilt_from={"telemetry"}, clock=later(WEEK_MS / 1000 + 60))
    assert rebuilt.delete_before == rebuilt.low
    (archived,) = plan_retention(fabric, rebuilt_from={"telemetry"}, archived={PLACE: end})
    assert archived.delete_before == archived.wanted_before


def test_the_housekeeper_says_in_its_telemetry_what_stays_and_why(scratch: Fabric) -> None:
    """A reason is published: hold everything back for a projection and read the telemetry that says so."""
    with_limits(scratch, retention_ms=-1, retention_bytes=1)
    fill(scratch, 20)
    with scratch.publisher("oona") as publisher:
        reports = Reports(scratch, publisher, rebuilt_from=lambda: {"telemetry"})
        (decision,) = reports.retain()
        assert decision.held_records > 0
        reports.emit()
        publisher.flush()
        with scratch.reader({PLACE: decision.low}) as reader:
            packets = [event.message for event in reader.read_to_end() if event.meta.source == "oona"]
    (event,) = packets[-1].events  # type: ignore[attr-defined]
    assert event.description == decision.reason
    assert "projections are rebuilt from what no archive holds" in event.description
