"""An operator's commands to a run in training: applied once, within the epochs that they name, or refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from esper.core.errors import UsageError
from esper.core.settings import load_settings
from esper.karn import approve, catalogue, withdraw
from esper.oona import Fabric
from esper.weatherlight import RunOrder, order_run
from tests.integration.driver import Esper, eventually, finish
from tests.oona.log import read_run

#: Batches of two samples make an epoch last half a second on an idle core, so that one can be named ahead.
TRAIN = ["--task", "mnist1d", "--policy", "noop", "--epochs", "2000", "--hyper", "batch_size=2", "--no-members"]


@pytest.fixture(scope="module")
def run_id(serving: Esper) -> Iterator[str]:
    """A run in training that grows nothing by itself; cancelled at the end."""
    run = serving.spawn("train", *TRAIN)

    def in_training() -> str | None:
        rows = serving("runs", "list", "--json").json
        return next((row["run_id"] for row in rows if row["status"] == "running" and row["epochs"]), None)

    found = eventually(in_training, what="the run is in training")
    yield found
    serving("runs", "cancel", found)
    finish(run)


def epoch_of(esper: Esper, run_id: str) -> int:
    return int(esper("runs", "show", run_id, "--json").json["epochs"][-1]["epoch"])


def slot_of(esper: Esper, run_id: str) -> str:
    packet = esper.events("system-state", run_id=run_id)[0]["payload"]
    return str(packet["slots"][0]["slot"])


def outcomes(esper: Esper, run_id: str, command_id: str) -> list[dict[str, Any]]:
    events = [event["payload"] for event in esper.events("runs", run_id=run_id)]
    return [event for event in events if event.get("command_id") == command_id and "state_event_id" in event]


def test_a_seed_is_germinated_and_culled_by_hand(serving: Esper, run_id: str) -> None:
    """Goal: an operator steers a run that its policy leaves alone, and its culled seed is reset. Method: germinate
    ahead, wait, cull at once, wait for the embargo.
    """
    first = epoch_of(serving, run_id) + 40
    words = ["--slot", slot_of(serving, run_id), "--blueprint", "BP009", "--set", "depth=2"]
    born = serving(
        "runs", "command", run_id, "germinate", *words, "--epochs", f"{first}-{first + 20}", "--wait", "--json"
    ).json
    assert (born["applied"], born["epoch"]) == (True, first)
    culled = serving("runs", "command", run_id, "cull", "--seed", born["seed_id"], "--wait", "--json").json
    assert culled["applied"]
    assert first < culled["epoch"]
    for command in (born, culled):
        (outcome,) = outcomes(serving, run_id, command["command_id"])
        assert outcome["result"] == "COMMAND_RESULT_APPLIED"

    def reset() -> bool:
        seeds = serving("runs", "show", run_id, "--json").json["seeds"]
        assert [seed["seed_id"] for seed in seeds] == [born["seed_id"]]
        assert seeds[0]["stage"] in ("EMBARGOED", "DORMANT")
        return bool(seeds[0]["stage"] == "DORMANT")

    assert eventually(reset, what="the culled seed is reset after its embargo"), "and its slot is free"
    statement = f"select first_epoch, last_epoch from commands where command_id = '{born['command_id']}'"  # noqa: S608 - our own id
    assert serving("sql", statement, "--json").json == [{"first_epoch": first, "last_epoch": first + 20}]


def test_what_the_run_refuses_is_said_and_exits_1(serving: Esper, run_id: str) -> None:
    """Goal: a refusal is no success. Method: cull a seed that the run does not have."""
    answer = serving("runs", "command", run_id, "cull", "--seed", "nobody", "--wait", "--json")
    assert answer.code == 1
    assert "refused: unknown_seed" in answer.stderr, "talk, beside the document"


SEED = {"seed_id": "s"}
WISH = {"slot": "hidden", "blueprint_id": "BP009", "parameters": {"depth": 2.0}}


def test_what_cannot_be_ordered_is_not_appended(serving: Esper, run_id: str) -> None:
    """Goal: a mistake is named before anything stands in the log. Method: one of each; count the orders."""
    mistakes: list[tuple[RunOrder, str]] = [
        (RunOrder("dance"), "there is no operation 'dance'"),
        (RunOrder("cull"), "cull needs a seed"),
        (RunOrder("structural_pruning"), "structural_pruning needs a seed"),
        (RunOrder("structural_pruning", **SEED, parameters={"share": 0.5}), "has no parameter 'share'"),
        (RunOrder("start_grafting", **SEED, blend_mode="loudly"), "there is no blend mode 'loudly'"),
        (RunOrder("start_grafting", **SEED, alpha_curve="steep"), "there is no curve 'steep'"),
        (RunOrder("cull", **SEED, epochs=(1, 1)), "has its outcome already"),
        (RunOrder("cull", **SEED, epochs=(9000, 9000)), "it has 2000 epochs"),
        (RunOrder("cull", **SEED, epochs=(9, 7)), "are no epochs"),
        (RunOrder("germinate", **{**WISH, "slot": "attic"}), "has no slot 'attic'"),
        (RunOrder("germinate", **{**WISH, "blueprint_id": "BP000"}), "there is no blueprint 'BP000'"),
        (RunOrder("germinate", **{**WISH, "parameters": {"depth": 99.0}}), "cannot take depth"),
    ]
    with Fabric.open(load_settings(_env_file=None, home=serving.home), member="cli") as fabric:

        def orders() -> int:
            events = read_run(fabric, "adaptation-commands", run_id)
            return sum(event.meta.source == "cli" for event in events)

        before = orders()
        for order, said in mistakes:
            with pytest.raises(UsageError, match=said):
                order_run(fabric, run_id, order)
        withdrawn = RunOrder("germinate", slot="hidden", blueprint_id="BP028", parameters={"growth_rate": 8.0})
        withdraw(fabric, catalogue(), "BP028", who="bob", reason="a test")
        try:
            with pytest.raises(UsageError, match="withdrawn: bob withdrew BP028"):
                order_run(fabric, run_id, withdrawn)
        finally:
            approve(fabric, catalogue(), "BP028", who="ann", reason="a test")
        assert orders() == before


@pytest.mark.parametrize(("option", "said"), [("--epochs", "names no epochs"), ("--set", "sets no parameter")])
def test_an_unreadable_option_exits_2(tmp_path: Path, option: str, said: str) -> None:
    """Goal: a slip of the pen is named. Method: words where numbers belong; nothing need run for that."""
    esper = Esper(tmp_path / "home")
    answer = esper("runs", "command", "run-1", "cull", "--seed", "s", option, "soon")
    assert answer.code == 2
    assert said in " ".join(answer.stderr.split())


def test_no_run_takes_commands_once_it_is_over(serving: Esper, run_id: str) -> None:
    """Goal: a command to nobody is refused. Method: a run cancelled while it waited, one that never was."""
    waiting = serving.spawn("train", "--task", "digits", "--policy", "noop", "--epochs", "1", "--no-members")

    def requested() -> str | None:
        rows = serving("runs", "list", "--json").json
        return next((row["run_id"] for row in rows if row["status"] == "requested"), None)

    over = eventually(requested, what="the run waits for the worker that trains another")
    serving("runs", "cancel", over)
    assert finish(waiting).code == 1
    assert over != run_id
    answer = serving("runs", "command", over, "cull", "--seed", "s")
    assert (answer.code, "it is over: it failed" in " ".join(answer.stderr.split())) == (2, True)
    nobody = serving("runs", "command", "run-nobody", "cull", "--seed", "s")
    assert (nobody.code, "there is no run 'run-nobody'" in nobody.stderr) == (2, True)
