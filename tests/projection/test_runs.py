"""Tests of the projection `runs` and of the documents that `esper runs` prints."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pytest

from esper.core.ids import derive_id
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.projection import Query, run_document, runs_list
from esper.projection.sql._reading import run_query
from tests.projection.conftest import OpenWorkbench, Workbench
from tests.projection.log import Log, finish, one_epoch, one_run

_TRAIN_FIELDS = [
    "run_id",
    "task",
    "host",
    "policy",
    "seed",
    "epochs",
    "status",
    "accuracy",
    "loss",
    "parameters",
    "multiply_adds",
    "multiply_adds_per_sample",
    "digest",
    "seeds",
    "failure",
    "failure_detail",
]
_EPOCH_FIELDS = [
    "epoch",
    "train_loss",
    "val_loss",
    "val_accuracy",
    "digest",
    "command_id",
    "command",
    "outcome",
    "latency_ms",
]


def _query(bench: Workbench) -> Query:
    def ask(sql: str, parameters: Sequence[object] = ()) -> pa.Table:
        return run_query(bench.database, sql, parameters, seconds=20)

    return ask


@pytest.fixture
def log() -> Log:
    """An empty log."""
    return Log()


def claim(log: Log, attempt: int) -> None:
    """Let the log's one producer win an attempt."""
    log.append(ly.TrainingRunClaimed(run_id="run-a", attempt=attempt, worker="tolaria-0"), key="run-a")


def _status(bench: Workbench, run_id: str = "run-a") -> object:
    bench.fold()
    document = run_document(_query(bench), run_id)
    assert document is not None
    return document["status"]


def test_a_finished_run_is_shown_whole(log: Log, open_workbench: OpenWorkbench) -> None:
    """The shape of `runs show` is a contract: fold a finished run and compare every field."""
    one_run(log)
    finish(log)
    bench = open_workbench(log)
    bench.fold()

    document = run_document(_query(bench), "run-a")

    assert document is not None
    assert list(document) == _TRAIN_FIELDS
    epochs = document.pop("epochs")
    assert document == {
        "run_id": "run-a",
        "task": "digits",
        "host": "mlp",
        "policy": "heuristic",
        "seed": 7,
        "status": "finished",
        "accuracy": 0.75,
        "loss": 0.5,
        "parameters": 150,
        "multiply_adds": 9000,
        "multiply_adds_per_sample": 30,
        "digest": "f" * 64,
        "seeds": [{"seed_id": "hidden.1", "slot": "hidden", "blueprint_id": "BP003", "stage": "FOSSILIZED"}],
        "failure": None,
        "failure_detail": None,
    }
    assert [list(epoch) for epoch in epochs] == [_EPOCH_FIELDS] * 3
    assert epochs[1] == {
        "epoch": 2,
        "train_loss": 2.0,
        "val_loss": 1.5,
        "val_accuracy": 0.2,
        "digest": f"{2:064x}",
        "command_id": derive_id("run-a", "command", 2),
        "command": "germinate",
        "outcome": "applied",
        "latency_ms": 2.5,
    }
    assert run_document(_query(bench), "run-b") is None


def test_a_list_holds_every_run(log: Log, open_workbench: OpenWorkbench) -> None:
    """`runs list` is one row for each run with the fields of `train`: two runs, the older first."""
    one_run(log, "run-b")
    one_run(log, "run-a", epochs=2)
    finish(log, "run-a", epochs=2)
    bench = open_workbench(log)
    bench.fold()
    rows = runs_list(_query(bench))
    assert [list(row) for row in rows] == [_TRAIN_FIELDS] * 2
    assert {row["run_id"]: (row["status"], row["epochs"]) for row in rows} == {
        "run-a": ("finished", 2),
        "run-b": ("running", 3),
    }


def test_a_status_follows_the_log(log: Log, open_workbench: OpenWorkbench) -> None:
    """requested, running, failed, running again, finished: append event by event, and read the status after each."""
    bench = open_workbench(log)
    log.append(ly.TrainingRunRequested(run_id="run-a", task="digits", epochs=2), key="run-a")
    assert _status(bench) == "requested"
    log.append(ly.TrainingRunClaimed(run_id="run-a", attempt=1, worker="tolaria-0"), key="run-a")
    assert _status(bench) == "running"
    one_epoch(log, "run-a", 1)
    assert _status(bench) == "running"
    log.append(ly.TrainingRunFailed(run_id="run-a", attempt=1, reason="worker_lost"), key="run-a")
    assert _status(bench) == "failed"
    log.append(ly.TrainingRunClaimed(run_id="run-a", attempt=2, worker="tolaria-0"), key="run-a")
    assert _status(bench) == "running"
    log.append(ly.TrainingRunFailed(run_id="run-a", attempt=1, reason="worker_lost", detail="late"), key="run-a")
    assert _status(bench) == "running"
    log.append(ly.TrainingRunFailed(run_id="run-a", reason="cancelled"), key="run-a")
    assert _status(bench) == "failed"
    log.append(ly.TrainingRunClaimed(run_id="run-a", attempt=3, worker="tolaria-0"), key="run-a")
    finish(log, "run-a", attempt=3, epochs=2)
    assert _status(bench) == "finished"


def test_the_lower_offset_wins_a_claim(log: Log, open_workbench: OpenWorkbench) -> None:
    """Two workers claim one attempt: the view names the first."""
    for worker in ("tolaria-0", "tolaria-1"):
        log.append(ly.TrainingRunClaimed(run_id="run-a", attempt=1, worker=worker), key="run-a")
    bench = open_workbench(log)
    bench.fold()
    assert bench.rows("select worker from runs") == [("tolaria-0",)]


def test_a_higher_attempt_fences_the_lower(log: Log, open_workbench: OpenWorkbench) -> None:
    """A zombie's epochs do not count: attempt 2 took over two epochs, attempt 1 wrote on after that."""
    claim(log, 1)
    one_epoch(log, "run-a", 1, val_loss=1.1)
    one_epoch(log, "run-a", 2, val_loss=1.2)
    claim(log, 2)
    log.append(ly.TrainingRunStarted(run_id="run-a", attempt=2, resumed_epochs=2), key="run-a")
    one_epoch(log, "run-a", 3, attempt=1, val_loss=6.6)
    one_epoch(log, "run-a", 4, attempt=1, val_loss=6.6)
    one_epoch(log, "run-a", 3, attempt=2, val_loss=1.3)
    bench = open_workbench(log)
    bench.fold()
    assert bench.rows("select epoch, attempt, val_loss from epochs order by epoch") == [
        (1, 1, 1.1),
        (2, 1, 1.2),
        (3, 2, 1.3),
    ]
    assert bench.rows("select epochs, val_loss from runs") == [(3, 1.3)]


@pytest.mark.parametrize("attempt", [1, 99])
def test_only_who_won_an_attempt_speaks_for_it(log: Log, open_workbench: OpenWorkbench, attempt: int) -> None:
    """Another producer rewrites no run: it tells of the same attempt first, and of one that nobody claimed."""
    claim(log, 1)
    forged: list[EventMessage] = [
        ly.SystemStatePacket(training_run_id="run-a", attempt=attempt, current_epoch=1, validation_loss=6.6),
        ly.SystemStatePacket(training_run_id="run-a", attempt=attempt, current_epoch=30, validation_loss=6.6),
        ly.CommandOutcome(run_id="run-a", attempt=attempt, epoch=1, result=ly.COMMAND_RESULT_REJECTED),
        ly.TrainingRunFinished(run_id="run-a", attempt=attempt, epochs=30, accuracy=1.0),
    ]
    for message in forged:
        log.append_raw(log.sign(message, key="run-a", producer_id="other:1"))
    one_epoch(log, "run-a", 1, val_loss=1.1)
    bench = open_workbench(log)
    bench.fold()
    assert bench.rows("select epoch, val_loss, outcome from epochs") == [(1, 1.1, "applied")]
    assert bench.rows("select status, epochs from runs") == [("running", 1)]


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (ly.CommandOutcome(result=ly.COMMAND_RESULT_NONE, reason="timeout"), (None, "none:timeout", None)),
        (
            ly.CommandOutcome(
                result=ly.COMMAND_RESULT_REJECTED,
                reason="unsupported_command",
                command_type=ly.COMMAND_ROLLBACK,
                latency_ms=1.0,
            ),
            ("rollback", "rejected:unsupported_command", 1.0),
        ),
        (
            ly.CommandOutcome(result=ly.COMMAND_RESULT_APPLIED, command_type=ly.COMMAND_CONTINUE, latency_ms=1.0),
            ("continue", "applied", 1.0),
        ),
        (None, (None, None, None)),
    ],
)
def test_an_epoch_says_what_became_of_its_command(
    log: Log,
    open_workbench: OpenWorkbench,
    outcome: ly.CommandOutcome | None,
    expected: tuple[str | None, str | None, float | None],
) -> None:
    """Every kind of outcome has its words, and an epoch without one is shown with none."""
    claim(log, 1)
    log.append(ly.SystemStatePacket(training_run_id="run-a", attempt=1, current_epoch=1), key="run-a")
    if outcome is not None:
        copy = ly.CommandOutcome()
        copy.CopyFrom(outcome)
        copy.run_id, copy.attempt, copy.epoch = "run-a", 1, 1
        log.append(copy, key="run-a")
    bench = open_workbench(log)
    bench.fold()
    assert bench.rows("select command, outcome, latency_ms from epochs") == [expected]


def test_seeds_stand_where_they_moved_last(log: Log, open_workbench: OpenWorkbench) -> None:
    """The current stage of a seed is its last move by offset: two moves of one, one of another."""
    moves = [("a.1", "GERMINATED", 1), ("a.1", "TRAINING", 1), ("b.1", "GERMINATED", 2), ("a.1", "CULLED", 3)]
    for seed_id, stage, epoch in moves:
        to_stage = ly.SeedLifecycleStage.Value(f"SEED_STAGE_{stage}")
        log.append(
            ly.SeedStageChanged(run_id="run-a", attempt=1, epoch=epoch, seed_id=seed_id, to_stage=to_stage), key="run-a"
        )
    bench = open_workbench(log)
    bench.fold()
    assert bench.rows("select seed_id, stage, epoch, first_epoch from seeds order by seed_id") == [
        ("a.1", "CULLED", 3, 1),
        ("b.1", "GERMINATED", 2, 2),
    ]


def test_gates_show_their_figures(log: Log, open_workbench: OpenWorkbench) -> None:
    """A gate's checks are there as the event had them."""
    one_run(log)
    bench = open_workbench(log)
    bench.fold()
    check = {"name": "finite", "value": 1.0, "bound": 1.0, "comparison": "==", "passed": True}
    assert bench.rows("select gate, passed, checks from gates") == [("G0_SANITY", True, [check])]


def test_field_reports_are_flat(log: Log, open_workbench: OpenWorkbench) -> None:
    """One row closes one decision: two reports of the same id by different events count once, with their reward."""
    one_run(log)
    log.append(ly.FieldReport(report_id=derive_id("run-a", "report", 1), training_run_id="run-a", epoch=9), key="run-a")
    bench = open_workbench(log)
    bench.fold()
    sql = "select run_id, epoch, outcome, reward, counterfactual_gain from field_reports"
    assert bench.rows(sql) == [("run-a", 1, "SUCCESS", 0.25, None)]
    assert bench.rows("select count(*) from field_report_facts") == [(2,)]


def test_the_catalogue_shows_what_was_said_last(log: Log, open_workbench: OpenWorkbench) -> None:
    """A blueprint registered twice and a kernel catalogued: the views show one row each, the last."""
    for name in ("old", "new"):
        descriptor = ly.BlueprintDescriptor(blueprint_id="BP003", name=name, tier=ly.BLUEPRINT_TIER_SAFE)
        descriptor.allowed_parameters["width"].max_value = 2.0
        log.append(ly.BlueprintRegistered(descriptor=descriptor), key="BP003")
    manifest = ly.ArtifactManifest(spec_bytes=10, weights_bytes=30, parameters=5)
    manifest.request.layout = "vector"
    manifest.request.in_shape.append(40)
    log.append(ly.KernelCatalogUpdate(kernel_id="k", blueprint_id="BP003", manifest=manifest), key="k")
    bench = open_workbench(log)
    bench.fold()
    assert bench.rows("select name, tier, parameters from blueprints") == [
        ("new", "SAFE", {"width": {"min_value": 0.0, "max_value": 2.0}})
    ]
    assert bench.rows("select kernel_id, layout, in_shape, size_bytes, parameters from urza_catalog") == [
        ("k", "vector", [40], 40, 5)
    ]
