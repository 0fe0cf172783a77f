"""Events as plain data for people and their tools."""

from __future__ import annotations

import json

import pytest

from esper.core.errors import UsageError
from esper.core.ids import new_run_id
from esper.leyline import Record
from esper.leyline import messages as ly
from esper.oona import Fabric, cat_events
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
