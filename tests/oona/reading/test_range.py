"""Points of the log as people name them."""

from __future__ import annotations

import pytest

from esper.core.clock import SYSTEM_CLOCK
from esper.core.errors import UsageError
from esper.core.ids import new_event_id, new_run_id
from esper.leyline import Record
from esper.oona import AtEvent, AtOffset, AtTime, Fabric, Receipt, parse_point
from esper.oona.reading._range import locate, offsets_at, scan
from tests.oona.log import append, packet, run_on_partition, signed_record


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("0", AtOffset(0)),
        ("120", AtOffset(120)),
        ("0" * 32, AtEvent("0" * 32)),
        ("0123456789abcdef0123456789abcdef", AtEvent("0123456789abcdef0123456789abcdef")),
        ("2026-09-21T10:00:00Z", AtTime(1_789_984_800_000)),
        ("2026-09-21T10:00:00", AtTime(1_789_984_800_000)),
        ("2026-09-21T12:00:00+02:00", AtTime(1_789_984_800_000)),
        ("2026-09-21", AtTime(1_789_948_800_000)),
        ("begin", "begin"),
        ("end", "end"),
    ],
)
def test_a_point_is_read_as_it_is_written(text: str, point: object) -> None:
    """Offsets, times and ids are told apart by their form: parse one of each."""
    assert parse_point(text) == point


def test_an_age_counts_back_from_now() -> None:
    """`2h` is two hours ago: parse it between two looks at the clock."""
    before = SYSTEM_CLOCK.now_ns() // 1_000_000
    point = parse_point("2h")
    assert isinstance(point, AtTime)
    assert before <= point.time_ms + 7_200_000 <= SYSTEM_CLOCK.now_ns() // 1_000_000


@pytest.mark.parametrize("text", ["", "yesterday", "-5", "1.5", "12x", "٣", "2026-13-01", "0123456789ABCDEF" * 2])
def test_what_names_no_point_is_refused(text: str) -> None:
    """A slip of the pen must not read the whole log: parse what is nothing."""
    with pytest.raises(UsageError, match="names no point of the log"):
        parse_point(text)


def _packets(fabric: Fabric, run_id: str, count: int) -> list[Receipt]:
    with fabric.publisher("tolaria") as publisher:
        return [publisher.publish(packet(run_id, epoch), key=run_id) for epoch in range(count)]


def test_a_time_and_an_event_give_each_partition_its_offset(fabric: Fabric) -> None:
    """An event stands for its own place and, elsewhere, for its append time: publish to two partitions, resolve."""
    first, second = (run_on_partition(fabric, "system-state", partition) for partition in (2, 5))
    early = _packets(fabric, first, 2)
    between = _packets(fabric, second, 1)[0]
    late = _packets(fabric, first, 1)[0]
    places = fabric.topics.partitions("system-state")
    at_event = offsets_at(fabric, AtEvent(early[1].event_id), places)
    assert at_event[("system-state", 2)] == early[1].offset
    assert at_event[("system-state", 5)] <= between.offset
    at_time = offsets_at(fabric, AtTime(between.append_time_ms), places)
    assert at_time[("system-state", 5)] <= between.offset
    assert early[0].offset < at_time[("system-state", 2)] <= late.offset or (
        early[0].append_time_ms >= between.append_time_ms
    )
    ends = offsets_at(fabric, "end", places)
    assert offsets_at(fabric, AtTime(2**50), places) == ends
    assert offsets_at(fabric, AtEvent(late.event_id), [("runs", 0)])[("runs", 0)] >= 0


def test_only_authentic_events_are_located(fabric: Fabric) -> None:
    """An id in forged bytes is nobody's event: append raw bytes with an id, then a genuine event that names it."""
    wanted, run_id = new_event_id(), new_run_id()
    append(fabric, [Record("runs", 0, -1, b"run", b"forged " + wanted.encode())])
    with pytest.raises(UsageError, match=f"no event has the id '{wanted}'"):
        locate(fabric, wanted)
    genuine = signed_record(fabric, packet(run_id, 1), key=run_id, source="tolaria", event_id=wanted)
    (placed,) = append(fabric, [genuine])
    found = locate(fabric, wanted, first=[("runs", 0)])
    assert (found.topic, found.partition, found.offset) == ("system-state", placed.partition, placed.offset)


def test_a_scan_keeps_within_its_bounds(fabric: Fabric) -> None:
    """From the first offset, to before the last, drawn in to what is there: scan parts of one partition."""
    run_id = new_run_id()
    receipts = _packets(fabric, run_id, 5)
    place = (receipts[0].topic, receipts[0].partition)

    def scanned(begin: int, end: int) -> list[int]:
        return [event.offset for event in scan(fabric, {place: begin}, {place: end})]

    offsets = [receipt.offset for receipt in receipts]
    assert scanned(offsets[1], offsets[3]) == list(range(offsets[1], offsets[3]))
    assert scanned(offsets[4], 10**12)[0] == offsets[4]
    assert scanned(10**12, 10**13) == []
    assert scanned(offsets[3], offsets[1]) == []
    only = [
        event.offset for event in scan(fabric, {place: 0}, {place: 10**12}, only=lambda r: r.key == run_id.encode())
    ]
    assert only == offsets
