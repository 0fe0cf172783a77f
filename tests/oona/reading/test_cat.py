"""Events as plain data for people and their tools."""

from __future__ import annotations

import json
import threading

import pytest

from esper.core.clock import SYSTEM_CLOCK
from esper.core.errors import UsageError
from esper.core.ids import new_run_id
from esper.leyline import Record
from esper.leyline import messages as ly
from esper.oona import AtEvent, AtOffset, AtTime, Fabric, Point, Selection, cat_events, tail_events
from tests.oona.log import append, packet


def test_events_come_with_the_contract_s_names(fabric: Fabric) -> None:
    """One JSON object for each event: publish a command, cat its key, compare the whole object."""
    run_id = new_run_id()
    command = ly.AdaptationCommand(
        training_run_id=run_id,
        command_type=ly.COMMAND_SEED,
        seed_operation=ly.CommandSeedOperation(
            operation=ly.SEED_OP_GERMINATE, blueprint_id="BP001", parameters={"a": 1.5}
        ),
    )
    with fabric.publisher("tamiyo") as publisher:
        receipt = publisher.publish(command, key=run_id, causation_id="c" * 32)
    (event,) = cat_events(fabric, "adaptation-commands", key=run_id)
    assert json.loads(json.dumps(event)) == {
        "topic": "adaptation-commands",
        "partition": receipt.partition,
        "offset": receipt.offset,
        "key": run_id,
        "type": "esper.leyline.v1.AdaptationCommand",
        "event_id": receipt.event_id,
        "causation_id": "c" * 32,
        "time": command.meta.time.ToJsonString(),
        "payload": {
            "training_run_id": run_id,
            "command_type": "COMMAND_SEED",
            "seed_operation": {"operation": "SEED_OP_GERMINATE", "blueprint_id": "BP001", "parameters": {"a": 1.5}},
        },
    }


def test_order_limit_and_forged_records(fabric: Fabric) -> None:
    """Partition by partition, by offset, forged ones left out: publish three runs around a forged record."""
    run_ids = [new_run_id() for _ in range(3)]
    with fabric.publisher("tolaria") as publisher:
        for epoch in range(4):
            for run_id in run_ids:
                publisher.publish(packet(run_id, epoch), key=run_id)
            append(fabric, [Record("system-state", 0, -1, run_ids[0].encode(), b"forged")])
    everything = list(cat_events(fabric, "system-state"))
    places = [(event["partition"], event["offset"]) for event in everything]
    assert places == sorted(places)
    for run_id in run_ids:
        mine = [event["payload"].get("current_epoch", 0) for event in everything if event["key"] == run_id]
        assert mine == [0, 1, 2, 3]
    assert len(list(cat_events(fabric, "system-state", limit=5))) == 5
    assert list(cat_events(fabric, "system-state", key=run_ids[1], limit=0)) == []
    with pytest.raises(UsageError, match="no topic called"):
        list(cat_events(fabric, "no-such-topic"))


def test_a_part_of_a_key_by_offset_time_event_and_field(fabric: Fabric) -> None:
    """From is included, to is not: publish six packets of a run, ask for parts of it in every way."""
    run_id = new_run_id()
    with fabric.publisher("tolaria") as publisher:
        receipts = [publisher.publish(packet(run_id, epoch), key=run_id) for epoch in range(6)]

    def epochs(begin: Point | None = None, end: Point | None = None, *where: str) -> list[int]:
        events = cat_events(fabric, "system-state", key=run_id, begin=begin, end=end, where=where)
        return [event["payload"].get("current_epoch", 0) for event in events]

    assert epochs(AtOffset(receipts[2].offset), AtOffset(receipts[4].offset)) == [2, 3]
    assert epochs(AtEvent(receipts[2].event_id), AtEvent(receipts[4].event_id)) == [2, 3]
    assert epochs(AtTime(receipts[0].append_time_ms), AtTime(receipts[5].append_time_ms + 1)) == [0, 1, 2, 3, 4, 5]
    assert epochs(AtTime(receipts[5].append_time_ms + 1)) == []
    assert epochs(None, None, "current_epoch=3") == [3]
    assert epochs(None, None, "current_epoch=0") == [0]
    assert epochs("end") == epochs("begin", "begin") == []
    with pytest.raises(UsageError, match="there is no field 'colour'"):
        epochs(None, None, "colour=red")
    with pytest.raises(UsageError, match="no event has the id"):
        epochs(AtEvent("f" * 32))


def test_a_tail_gives_what_comes(fabric: Fabric) -> None:
    """A tail begins at the end and goes on: start one, publish while it waits, and see it hand on two of three."""
    run_id = new_run_id()
    ready = threading.Event()
    with fabric.publisher("tolaria") as publisher:
        old = publisher.publish(packet(run_id, 0), key=run_id)

        def publish_more() -> None:
            ready.wait(30)
            for epoch in (1, 2, 3):
                publisher.publish(packet(run_id, epoch), key=run_id)

        writer = threading.Thread(target=publish_more)
        writer.start()
        tail = tail_events(
            fabric, "system-state", Selection(key=run_id, begin=AtOffset(old.offset), where=["version=0"])
        )
        assert next(tail)["event_id"] == old.event_id
        ready.set()
        assert [next(tail)["payload"]["current_epoch"] for _ in range(3)] == [1, 2, 3]
        writer.join(30)
        tail.close()


def test_a_tail_ends_where_it_is_told(fabric: Fabric) -> None:
    """A tail with an end stops by itself: an offset that is there, a time that has passed, one that is to come."""
    run_id = new_run_id()
    with fabric.publisher("tolaria") as publisher:
        receipts = [publisher.publish(packet(run_id, epoch), key=run_id) for epoch in range(3)]
    begin = AtOffset(receipts[0].offset)
    now = SYSTEM_CLOCK.now_ns() // 1_000_000
    ends: dict[Point, int] = {
        AtOffset(receipts[1].offset): 1,
        AtTime(receipts[2].append_time_ms + 1): 3,
        AtTime(now + 1_500): 3,
    }
    for end, count in ends.items():
        found = list(tail_events(fabric, "system-state", Selection(key=run_id, begin=begin, end=end)))
        assert [event["offset"] for event in found] == [receipt.offset for receipt in receipts[:count]]
