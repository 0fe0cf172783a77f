"""Members and the broker are killed in mid-run; the log says what happened and nothing is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from esper.core.home import Home
from esper.core.settings import load_settings
from esper.oona import Fabric
from esper.oona.broker import LocalBroker
from tests.integration.driver import Esper, eventually, finish, kill

TRAIN = ["--task", "mnist1d", "--host", "mlp", "--policy", "heuristic", "--seed", "3"]
#: With batches of two samples an epoch of mnist1d takes half a second on an idle core: twelve of them outlast a kill
#: and the start of a process, eight with batches of four a kill.
SLOW, EPOCHS = [*TRAIN, "--hyper", "batch_size=2"], 12
SHORT, SHORT_EPOCHS = [*TRAIN, "--hyper", "batch_size=4"], 8
Note = Callable[[str, object], None]

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(600)]


def epochs_logged(esper: Esper) -> list[int]:
    return [event["payload"]["current_epoch"] for event in esper.events("system-state")]


def outcomes(esper: Esper, run_id: str) -> list[dict[str, Any]]:
    events = esper.events("runs", run_id=run_id)
    return [event["payload"] for event in events if event["type"].endswith("CommandOutcome")]


def types(esper: Esper, run_id: str) -> Counter[str]:
    return Counter(event["type"].rpartition(".")[2] for event in esper.events("runs", run_id=run_id))


def wait_for_epoch(esper: Esper, epoch: int) -> None:
    """Wait until a run's packet of that epoch is in the log; followed here, as a command would take seconds to look."""
    with ExitStack() as stack:
        fabric = stack.enter_context(Fabric.open(load_settings(_env_file=None, home=esper.home), member="cli"))
        places = dict.fromkeys(fabric.topics.partitions("system-state"), "begin")
        reader = stack.enter_context(fabric.reader(places))

        def logged() -> bool:
            return any(event.message.current_epoch >= epoch for event in reader.read(0.2))  # type: ignore[attr-defined]  # packets only

        eventually(logged, what=f"epoch {epoch} is logged")


def test_a_killed_tamiyo_costs_only_the_epochs_it_missed(esper: Esper, record_property: Note) -> None:
    """Goal: the run goes on without its controller and takes its commands again after the restart.

    Method: SIGKILL Tamiyo, leave it dead for some epochs, start it again, read the outcomes.
    """
    esper.environment["ESPER_DECISION_WAIT_SECONDS"] = "1"
    with esper.serving("karn", "tezzeret", "urza", "tolaria"):
        tamiyo = esper.spawn("run", "tamiyo")
        run = esper.spawn("train", *SLOW, "--epochs", str(EPOCHS), "--no-members", "--json")
        try:
            wait_for_epoch(esper, 2)
            kill(tamiyo.pid)
            finish(tamiyo)
            wait_for_epoch(esper, 5)
            tamiyo = esper.spawn("run", "tamiyo")
            document = finish(run).json
        finally:
            tamiyo.terminate()
            finish(tamiyo)
    found = outcomes(esper, document["run_id"])
    results = {o["epoch"]: o["result"].removeprefix("COMMAND_RESULT_") for o in found}
    assert [o["epoch"] for o in found] == list(range(1, EPOCHS + 1))
    missed = [epoch for epoch, result in results.items() if result == "NONE"]
    assert missed, "some epochs had no command"
    assert all(o["reason"] in ("timeout", "breaker_open") for o in found if o["epoch"] in missed)
    assert any(results[epoch] == "APPLIED" for epoch in range(max(missed) + 1, EPOCHS + 1))
    applied = [o["command_id"] for o in found if o.get("command_id")]
    assert len(applied) == len(set(applied)), "no command was applied twice"
    answered = Counter(event["causation_id"] for event in esper.events("adaptation-commands"))
    assert max(answered.values()) == 1
    record_property("epochs_without_a_command", missed)
    record_property("commands_applied", len(applied))


def test_a_killed_broker_loses_no_epoch(esper: Esper) -> None:
    """Goal: nothing is missing from the log after a crash of the broker. Method: SIGKILL it in mid-run, start it."""
    settings = load_settings(home=esper.home)
    broker = LocalBroker(Home.open(settings), settings)
    run = esper.spawn("train", *SLOW, "--epochs", str(EPOCHS), "--json")
    esper.wait_for_members()
    wait_for_epoch(esper, 2)
    broker.kill()
    broker.start()
    document = finish(run).json
    assert document["status"] == "finished"
    assert epochs_logged(esper) == list(range(1, EPOCHS + 1))
    assert [o["epoch"] for o in outcomes(esper, document["run_id"])] == list(range(1, EPOCHS + 1))


def test_a_killed_worker_is_followed_by_another_attempt(esper: Esper) -> None:
    """Goal: a dead worker's run is finished, with the same digests as without the death.

    Method: SIGKILL the worker under `serve`, which starts it again; compare with an undisturbed run.
    """
    with esper.serving():
        run = esper.spawn("train", *SHORT, "--epochs", str(SHORT_EPOCHS), "--json")
        wait_for_epoch(esper, 2)
        kill(esper.member_pid("tolaria-0"))
        document = finish(run).json
        undisturbed = esper("train", *SHORT, "--epochs", str(SHORT_EPOCHS), "--json").json
    kinds = types(esper, document["run_id"])
    assert kinds["TrainingRunClaimed"] == 2
    assert kinds["CommandOutcome"] == SHORT_EPOCHS
    assert document["digest"] == undisturbed["digest"]
    assert document["accuracy"] == undisturbed["accuracy"]
