"""A hazard in a real home: ordered by hand, compiled, tried out in quarantine, rejected, and computed again."""

from __future__ import annotations

from esper.core.settings import load_settings
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.tolaria import Comparison, re_execute
from esper.weatherlight._grafting import controller_factory
from tests.integration.driver import Esper, eventually, finish
from tests.oona.log import read_run

#: Small batches make the run last long enough for an order to reach it.
TRAIN = ["--task", "mnist1d", "--policy", "noop", "--epochs", "60", "--hyper", "batch_size=4", "--no-members"]


def test_a_hazard_ordered_by_hand_ends_in_quarantine(serving: Esper) -> None:
    """Goal: all members together contain a hazard, and the run goes on as if it had never been ordered. Method: an
    operator germinates NaN injection in a run in training; the answer, the event, SQL, the run's end, and its
    re-execution, which must be equal in every epoch.
    """
    known = {row["run_id"] for row in serving("runs", "list", "--json").json}
    run = serving.spawn("train", *TRAIN)

    def in_training() -> str | None:
        rows = serving("runs", "list", "--json").json
        fresh = (row for row in rows if row["run_id"] not in known)
        return next((row["run_id"] for row in fresh if row["status"] == "running" and row["epochs"]), None)

    run_id = eventually(in_training, what="the run is in training")
    slot = str(serving.events("system-state", run_id=run_id)[0]["payload"]["slots"][0]["slot"])
    wish = ["--slot", slot, "--blueprint", "BP045", "--set", "frequency=0.05"]
    answer = serving("runs", "command", run_id, "germinate", *wish, "--wait", "--json", timeout=180)
    assert answer.code == 1
    assert "refused: quarantined:not_finite" in answer.stderr, answer.stderr
    assert finish(run).code == 0
    events = [
        event for event in serving.events("seed-events", run_id=run_id) if event["type"].endswith("KernelQuarantined")
    ]
    assert [event["payload"]["verdict"] for event in events] == ["QUARANTINE_VERDICT_NOT_FINITE"]
    statement = f"select slot, blueprint_id, verdict, steps from quarantines where run_id = '{run_id}'"  # noqa: S608 - our own id
    told = serving("sql", statement, "--json").json
    assert told == [{"slot": slot, "blueprint_id": "BP045", "verdict": "NOT_FINITE", "steps": 3}]
    assert serving("runs", "show", run_id, "--json").json["seeds"] == []
    again = computed_again(serving, run_id)
    assert (again.equal, again.epochs) == (True, 60), again.first_difference


def computed_again(esper: Esper, run_id: str) -> Comparison:
    """Compute the run again from the log, with the kernels of this home."""
    with Fabric.open(load_settings(_env_file=None, home=esper.home), member="test") as fabric:
        request, *_ = read_run(fabric, "run-requests", run_id)
        ends = [event.message for event in read_run(fabric, "runs", run_id)]
        return re_execute(
            request.message,  # type: ignore[arg-type]  # the topic holds requests
            [message for message in ends if isinstance(message, ly.CommandOutcome)],
            [event.message for event in read_run(fabric, "system-state", run_id)],  # type: ignore[misc]  # packets alone
            controller_factory(fabric),
            finished=next(message for message in ends if isinstance(message, ly.TrainingRunFinished)),
        )
