"""What a learned policy was trained on, read from the ranges that its PolicyUpdate names, on a real broker."""

from __future__ import annotations

from dataclasses import replace

from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.oona.copying import topic_ids
from esper.simic.trials import Decider, TrainedOn, TrialRun
from esper.tamiyo import drawn_digest
from esper.weatherlight import TrainingRequest, cells_learned_from
from tests.simic.trials.worlds import plan, world

TASK = "tests.tolaria.short:spirals"
PLAN = plan(
    cells=[{"task": TASK, "host": "mlp:4"}, {"task": TASK, "host": "mlp:5"}],
    seeds={"first": 0, "count": 1},
    arms={"static": {}, "learned": {}},
)


def _decided(digest: str) -> list[TrialRun]:
    decider = frozenset({Decider("learned", "1", digest)})
    return [replace(run, deciders=decider) if run.place.arm == "learned" else run for run in world(PLAN)]


def _asked(fabric: Fabric, number: int, *, host: str) -> str:
    run_id = f"run-pedigree-{number}"
    with fabric.publisher("cli") as publisher:
        publisher.publish(TrainingRequest(task=TASK, host=host).message(run_id, fabric.settings), key=run_id)  # type: ignore[arg-type]  # an id
    return run_id


def _reported(fabric: Fabric, run_id: str) -> ly.OffsetRange:
    """Append a field report of a run and return the range that holds it alone."""
    with fabric.publisher("tamiyo") as publisher:
        receipt = publisher.publish(ly.FieldReport(training_run_id=run_id), key=run_id)
    (topic_id,) = topic_ids(fabric.cluster, ["field-reports"]).values()
    return ly.OffsetRange(
        topic="field-reports",
        topic_id=topic_id,
        partition=receipt.partition,
        first_offset=receipt.offset,
        end_offset=receipt.offset + 1,
    )


def _trained(
    fabric: Fabric, digest: str, *ranges: ly.OffsetRange, parent: str = "", says: tuple[str, ...] = ()
) -> None:
    update = ly.PolicyUpdate(
        policy_id="pedigree",
        policy_digest=digest,
        training_data=ranges,
        parent_policy_digest=parent,
        learned_on=says,
    )
    with fabric.publisher("simic") as publisher:
        publisher.publish(update, key="pedigree")


def test_a_pedigree_is_followed_to_cells(fabric: Fabric) -> None:
    """Ranges of a version and of the one it was trained from lead to runs, these to cells; "mlp" is "mlp:4" here."""
    first, second = _asked(fabric, 1, host="mlp"), _asked(fabric, 2, host="mlp:7")
    grandparent, parent, child = "1" * 64, "2" * 64, "3" * 64
    _trained(fabric, grandparent, _reported(fabric, first))
    _trained(fabric, parent, _reported(fabric, second))
    _trained(fabric, child, _reported(fabric, second), parent=grandparent)
    assert cells_learned_from(fabric, PLAN, _decided(parent)) == {parent: TrainedOn(frozenset({f"{TASK}/mlp:7"}))}
    expected = frozenset({f"{TASK}/mlp:4", f"{TASK}/mlp:7"})
    assert cells_learned_from(fabric, PLAN, _decided(child)) == {child: TrainedOn(expected)}


def test_what_is_not_all_in_the_log_is_not_known(fabric: Fabric) -> None:
    """No update, a parent without one, ranges of another log or beyond this one, runs without a request."""
    run_id = _asked(fabric, 3, host="mlp:5")
    held = _reported(fabric, run_id)
    elsewhere, beyond = ly.OffsetRange(), ly.OffsetRange()
    elsewhere.CopyFrom(held)
    elsewhere.topic_id = "another"
    beyond.CopyFrom(held)
    beyond.end_offset += 10_000
    unasked = _reported(fabric, "run-pedigree-unasked")
    _trained(fabric, "4" * 64, held, parent="0" * 64)
    _trained(fabric, "5" * 64, elsewhere)
    _trained(fabric, "6" * 64, beyond)
    _trained(fabric, "7" * 64, unasked)
    _trained(fabric, "8" * 64)
    for digit in "45678f":
        assert cells_learned_from(fabric, PLAN, _decided(digit * 64)) == {}
    _trained(fabric, "9" * 64, held)
    assert cells_learned_from(fabric, PLAN, _decided("9" * 64)) == {"9" * 64: TrainedOn(frozenset({f"{TASK}/mlp:5"}))}


def test_an_update_is_believed_where_the_log_holds_no_more(fabric: Fabric) -> None:
    """Ranges of another log: what the update says counts, by the plan's names. Where the log holds the runs, they
    count, whatever the update says."""
    held = _reported(fabric, _asked(fabric, 4, host="mlp:5"))
    elsewhere = ly.OffsetRange()
    elsewhere.CopyFrom(held)
    elsewhere.topic_id = "another"
    _trained(fabric, "a" * 64, elsewhere, says=(f"{TASK}/mlp", "moons/mlp:3"))
    _trained(fabric, "b" * 64, held, says=("moons/mlp:3",))
    said = TrainedOn(frozenset({f"{TASK}/mlp:4", "moons/mlp:3"}), said=True)
    assert cells_learned_from(fabric, PLAN, _decided("a" * 64)) == {"a" * 64: said}
    expected = {"b" * 64: TrainedOn(frozenset({f"{TASK}/mlp:5"}))}
    assert cells_learned_from(fabric, PLAN, _decided("b" * 64)) == expected


def test_how_a_policy_draws_hides_no_pedigree(fabric: Fabric) -> None:
    """A plan that has the likeliest action taken always gives decisions another digest; the version stays the same,
    and so does what it was trained on."""
    held = _reported(fabric, _asked(fabric, 5, host="mlp:5"))
    _trained(fabric, "c" * 64, held)
    parameters = {"temperature": 0.0, "risk.blueprint_max": 0.9}
    greedy = plan(
        cells=[{"task": TASK, "host": "mlp:4"}, {"task": TASK, "host": "mlp:5"}],
        seeds={"first": 0, "count": 1},
        arms={"static": {}, "learned": {"parameters": parameters}},
    )
    drawn = drawn_digest(ly.PolicyUpdate(policy_digest="c" * 64), parameters)
    assert drawn != "c" * 64
    expected = TrainedOn(frozenset({f"{TASK}/mlp:5"}))
    assert cells_learned_from(fabric, greedy, _decided(drawn)) == {drawn: expected}
    assert cells_learned_from(fabric, PLAN, _decided("c" * 64)) == {"c" * 64: expected}
