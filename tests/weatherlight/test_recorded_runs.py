"""What is said of recorded runs, without a broker: how two differ, how an epoch is restored, where one was made."""

from __future__ import annotations

from typing import Any

from esper.core.ids import RunId
from esper.core.settings import Settings
from esper.leyline import messages as ly
from esper.tolaria import Environment, differences
from esper.weatherlight import ForkRequest, OtherEnvironment, compare_runs
from esper.weatherlight._restore_outlook import seconds_per_epoch, ways


def document(run_id: str, digests: str, **fields: object) -> dict[str, Any]:
    """Return a run of one epoch for each letter of `digests`."""
    epochs = [
        {
            "epoch": epoch, "command": "continue", "outcome": "applied", "digest": letter,
            "train_loss": 1.0, "val_loss": 1.0, "val_accuracy": 0.5,
        }
        for epoch, letter in enumerate(digests, start=1)
    ]  # fmt: skip
    end = {"accuracy": 0.5, "loss": 1.0, "parameters": 10, "multiply_adds": 100, "multiply_adds_per_sample": 1}
    request = {"task": "digits", "host": "mlp", "policy": "noop", "seed": 1}
    return {"run_id": run_id, **request, **end, "epochs": epochs, **fields}


def test_two_runs_part_at_the_first_field_that_differs() -> None:
    """Goal: what a fork was worth. Method: digests part at epoch 3, the second run stays worse."""
    found = compare_runs(document("a", "abcd"), document("b", "abxy", policy="fixed", loss=1.5))
    assert (found["equal_epochs"], [row["epoch"] for row in found["epochs"]]) == (2, [3, 4])
    assert found["first_difference"] == {"epoch": 3, "field": "digest", "a": "c", "b": "x"}
    assert found["request"] == {"policy": {"a": "noop", "b": "fixed"}}
    assert found["end"]["loss"] == {"a": 1.0, "b": 1.5, "difference": 0.5}


def test_runs_of_other_lengths_are_compared_as_far_as_both_go() -> None:
    """Goal: no difference where there is nothing to compare. Method: one run goes on, and has no end yet."""
    found = compare_runs(document("a", "abc"), document("b", "ab", loss=None))
    assert (found["equal_epochs"], found["first_difference"], found["epochs"]) == (2, None, [])
    assert found["end"]["loss"]["difference"] is None


def test_an_epoch_is_restored_from_the_nearest_checkpoint_before_it() -> None:
    """Goal: say how fast. Method: checkpoints of epochs 2 and 4 of five, half a second each; then none, and no pace."""
    found = ways(range(1, 6), [2, 4], 0.5)
    assert [(way["from_epoch"], way["repeated_epochs"], way["seconds"]) for way in found] == [
        (0, 1, 0.5), (2, 0, 0.0), (2, 1, 0.5), (4, 0, 0.0), (4, 1, 0.5),
    ]  # fmt: skip
    assert ways([3], [], None) == [{"epoch": 3, "from_epoch": 0, "repeated_epochs": 3, "seconds": None}]
    assert seconds_per_epoch([0, 100, 200, 9_200]) == 0.1
    assert seconds_per_epoch([7]) is None


def test_what_was_otherwise_is_named() -> None:
    """Goal: a verdict's terms are in words. Method: two attempts, one on another processor, one with other data."""
    here = Environment(ly.NumericsFingerprint(torch="2", instruction_set="AVX2"), "1.0", "d" * 64, "a" * 64)
    other = ly.NumericsFingerprint(torch="2", instruction_set="AVX512")
    starts = (
        ly.TrainingRunStarted(
            attempt=1, numerics=other, code_version="1.0", dependencies_digest="d" * 64, data_digest="a" * 64
        ),
        ly.TrainingRunStarted(
            attempt=2, numerics=here.numerics, code_version="1.0", dependencies_digest="d" * 64, data_digest="b" * 64
        ),
    )
    found = differences(starts, here)
    assert [(one.attempt, one.name) for one in found] == [(1, "numerics.instruction_set"), (2, "data_digest")]
    error = OtherEnvironment("run-1", found)
    assert "numerics.instruction_set was AVX512 in attempt 1 and is AVX2 here" in str(error)
    assert (error.exit_code, error.retriable) == (3, False)
    assert differences(starts[:0], here) == ()


def test_a_fork_asks_for_what_its_origin_asked_for() -> None:
    """Goal: only decisions may differ. Method: the same policy with one parameter set; another policy, which takes
    none of the origin's parameters."""
    origin = ly.TrainingRunRequested(
        run_id="run-1", task="digits", policy="fixed", policy_parameters={"a": 1, "b": 2}, seed=3, epochs=9
    )
    origin.meta.event_id = "0" * 32
    same = ForkRequest(origin, 4, policy_parameters={"b": 5}).message(RunId("run-2"), Settings(_env_file=None))
    assert (same.run_id, same.forked_from, same.forked_epochs) == ("run-2", "run-1", 4)
    assert (same.policy, dict(same.policy_parameters)) == ("fixed", {"a": 1, "b": 5})
    assert (same.task, same.seed, same.epochs, same.HasField("meta")) == ("digits", 3, 9, False)
    other = ForkRequest(origin, 4, "noop", {}).message(RunId("run-3"), Settings(_env_file=None))
    assert (other.policy, dict(other.policy_parameters)) == ("noop", {})
