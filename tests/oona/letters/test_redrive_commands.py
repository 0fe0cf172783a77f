"""`esper dlq` as people use it: list what is parked, order it again or give it up, and be told what cannot be."""

from __future__ import annotations

from esper.core.ids import new_run_id
from esper.oona import Fabric
from tests.conftest import RunningBroker
from tests.integration.driver import Esper
from tests.oona.letters.parking import Poisoned, join, poll_until_nothing_is_parked, publish_steps
from tests.oona.log import fresh_group, poll_to_end


def test_a_parked_key_is_listed_redriven_and_discarded_by_command(broker: RunningBroker, fabric: Fabric) -> None:
    """Goal: three commands deal with a parked key. Method: park two keys; redrive one, discard the other, list."""
    runs, group = [new_run_id(), new_run_id()], fresh_group()
    handler = Poisoned(runs, [(run_id, 0) for run_id in runs])
    esper = Esper(broker.settings.home, {**broker.told})
    publish_steps(fabric, [(run_id, epoch) for epoch in range(2) for run_id in runs])
    with join(fabric, group, handler) as consumer:
        poll_to_end(consumer, fabric)
        listed = {
            (row["key"], row["state"]): row for row in esper("dlq", "list", "--json").json if row["group"] == group
        }
        assert set(listed) == {(run_id, state) for run_id in runs for state in ("parked", "waits")}
        places = [
            [str(listed[(run_id, "parked")][name]) for name in ("topic", "partition", "offset")] for run_id in runs
        ]
        waits = listed[(runs[0], "waits")]
        assert str(waits["waits_for"]) == places[0][2]
        refused = esper("dlq", "redrive", waits["topic"], str(waits["partition"]), str(waits["offset"]))
        assert refused.code == 2
        assert places[0][2] in refused.stderr, "it names what must be redriven first"
        handler.poison.clear()
        given = esper("dlq", "redrive", *places[0], "--note", "mended", "--json").json
        assert (given["group"], given["waiting"]) == (group, 1)
        answer = esper("dlq", "discard", *places[1], "--group", group)
        assert answer.code == 0
        assert "1 records wait behind it" in answer.stderr
        poll_until_nothing_is_parked(consumer)
    assert handler.handled == {runs[0]: [0, 1], runs[1]: [1]}
    assert [row for row in esper("dlq", "list", "--json").json if row["group"] == group] == []
    ended = [row["state"] for row in esper("dlq", "list", "--all", "--json").json if row["group"] == group]
    assert sorted(ended) == ["discarded", "redriven", "redriven", "redriven"]
    assert esper("dlq", "redrive", *places[0]).code == 2
