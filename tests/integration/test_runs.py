"""A recorded run is computed again, restored, forked and compared, by the command line, from the log alone."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from esper.core.digest import state_digest
from esper.core.settings import load_settings
from esper.leyline import messages as ly
from esper.oona import Fabric
from tests.campaigns import WHOLE
from tests.integration.driver import REPOSITORY, Esper, eventually, finish, kill

EPOCHS, FORKED = 22, 3
#: Runs computed again and workers killed by way of the command line; tests/tolaria does both 50 times.
VERIFIED = 10 if WHOLE else 2
KILLS = 10 if WHOLE else 1
#: Two samples a step: an epoch takes a second, so that a kill and a start fall into a run.
SLOW = ["--task", "mnist1d", "--policy", "heuristic", "--seed", "7", "--hyper", "batch_size=2"]
SLOW_EPOCHS = 12
Note = Callable[[str, object], None]


def train(esper: Esper, *, seed: int, policy: str = "heuristic", epochs: int = EPOCHS) -> Any:
    words = ["--task", "mnist1d", "--policy", policy, "--epochs", str(epochs), "--seed", str(seed), "--json"]
    return esper("train", *words).json


def digests(esper: Esper, run_id: str) -> list[str]:
    return [epoch["digest"] for epoch in esper("runs", "show", run_id, "--json").json["epochs"]]


@pytest.fixture(scope="module")
def lived(serving: Esper) -> Any:
    """A run on which a seed grew."""
    document = train(serving, seed=7)
    assert {seed["stage"] for seed in document["seeds"]} == {"FOSSILIZED"}
    return document


# A commit between two commands is another code: `--anyway` compares the digests all the same.
@pytest.mark.campaign
def test_recorded_runs_come_out_again(serving: Esper, lived: Any) -> None:
    """Goal: the log is the model. Method: grown runs of several seeds, each computed again, checkpoints included."""
    run_ids = [lived["run_id"]] + [train(serving, seed=seed, epochs=12)["run_id"] for seed in range(1, VERIFIED)]
    for run_id in run_ids:
        verified = serving("runs", "verify", run_id, "--anyway", "--json").json
        assert verified == {
            "run_id": run_id,
            "epochs": EPOCHS if run_id == lived["run_id"] else 12,
            "equal": True,
            "first_difference": None,
        }


def test_other_numerics_exit_3_and_are_named(serving: Esper, lived: Any) -> None:
    """Goal: no verdict where none can be. Method: verify with torch's plain kernels instead of the processor's."""
    plain = Esper(serving.home, serving.environment | {"ATEN_CPU_CAPABILITY": "default"})
    refused = plain("runs", "verify", lived["run_id"])
    assert refused.code == 3
    assert "numerics.instruction_set was" in refused.stderr
    assert "and is DEFAULT here" in refused.stderr
    assert refused.stdout == ""


TASK = """
import torch
from torch import nn

from esper.tolaria import Host, SlotSpec, Split, Task


def points():
    inputs = torch.randn(96, 2, generator=torch.Generator().manual_seed({seed}))
    targets = (inputs.norm(dim=1) > 1.0).long()
    parts = [Split(inputs[at], targets[at]) for at in (slice(64), slice(64, 80), slice(80, 96))]
    host = lambda: Host(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), (SlotSpec("0"),))
    return Task("points", *parts, classes=2, hosts={{"mlp": host}}, epochs=2)
"""


def test_other_data_and_other_code_exit_3_and_are_named(esper: Esper, tmp_path: Path) -> None:
    """Goal: no verdict where none can be. Method: a task of one's own whose data change after the run; then a copy of
    this very code that is no checkout any more, and so another version of it."""
    module = tmp_path / "points_task.py"
    module.write_text(TASK.format(seed=1))
    at_home = Esper(esper.home, esper.environment | {"PYTHONPATH": str(tmp_path)})
    words = ["--task", "points_task:points", "--host", "mlp", "--policy", "noop", "--epochs", "2", "--json"]
    run_id = at_home("train", *words).json["run_id"]
    assert at_home("runs", "verify", run_id, "--anyway", "--json").json["equal"]
    module.write_text(TASK.format(seed=2))
    refused = at_home("runs", "verify", run_id)
    assert (refused.code, refused.stdout) == (3, "")
    assert "data_digest was" in refused.stderr
    still_other = at_home("runs", "verify", run_id, "--anyway")
    assert still_other.code == 3
    assert "epoch 1 does not repeat" in still_other.stderr
    module.write_text(TASK.format(seed=1))
    for part in ("esper", "topics", "projections", "proto"):
        shutil.copytree(REPOSITORY / part, tmp_path / "copy" / part, ignore=shutil.ignore_patterns("__pycache__"))
    copied = subprocess.run(
        [sys.executable, "-m", "esper.cli", "runs", "verify", run_id],
        cwd=tmp_path / "copy", env=at_home._environment(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert (copied.returncode, copied.stdout) == (3, "")
    assert "code_version was" in copied.stderr


@pytest.mark.parametrize("epoch", [2, 10, EPOCHS])
def test_an_epoch_is_restored_to_the_byte(serving: Esper, lived: Any, tmp_path: Path, epoch: int) -> None:
    """Goal: the network of any epoch. Method: from the beginning, from a checkpoint, and from one before it; the
    file's own tensors have the digest of the epoch's packet, and `runs show` said which way it would go."""
    to = tmp_path / "network.safetensors"
    restored = serving("runs", "restore", lived["run_id"], "--epoch", str(epoch), "--to", str(to), "--json").json
    packets = {
        e["payload"]["current_epoch"]: e["payload"] for e in serving.events("system-state", run_id=lived["run_id"])
    }
    assert state_digest(load_file(to)) == restored["digest"] == packets[epoch]["weights_digest"]
    shown = serving("runs", "show", lived["run_id"], "--json").json["restore"]
    way = shown["epochs"][epoch - 1]
    assert (way["from_epoch"], way["repeated_epochs"]) == (restored["from_epoch"], restored["repeated_epochs"])
    assert [kept["epoch"] for kept in shown["checkpoints"]] == [10, 20]
    assert all(kept["stored"] for kept in shown["checkpoints"])


def test_what_cannot_be_restored_is_said(serving: Esper, lived: Any, tmp_path: Path) -> None:
    """Goal: errors that help. Method: an epoch that never was, a run that never was, a folder that is not there."""
    to = str(tmp_path / "network.safetensors")
    beyond = serving("runs", "restore", lived["run_id"], "--epoch", "99", "--to", to)
    assert beyond.code == 2
    assert f"the log holds epochs 1 to {EPOCHS} of it" in beyond.stderr
    assert serving("runs", "restore", "run-of-nobody", "--epoch", "1", "--to", to).code == 2
    nowhere = serving("runs", "restore", lived["run_id"], "--epoch", "10", "--to", str(tmp_path / "no" / "x"))
    assert nowhere.code == 2
    assert "cannot be written" in nowhere.stderr
    assert not list(tmp_path.iterdir())
    for words in (["verify", "run-of-nobody"], ["fork", "run-of-nobody", "--epoch", "1"], ["diff", "run-x", "run-y"]):
        refused = serving("runs", *words)
        assert refused.code == 2
        assert "there is no run" in refused.stderr
    assert serving("runs", "fork", lived["run_id"], "--epoch", "99").code == 2
    assert serving("runs", "fork", lived["run_id"], "--epoch", "3", "--policy", "no-such").code == 2


def test_a_fork_with_the_same_commands_is_the_same_run(serving: Esper, lived: Any) -> None:
    """Goal: a fork is its origin until somebody decides otherwise. Method: fork under the origin's own policy, which
    then orders the same; every digest is equal, and the fork's own record computes again without its origin's."""
    forked = serving("runs", "fork", lived["run_id"], "--epoch", str(FORKED), "--json").json
    assert forked["run_id"] != lived["run_id"]
    assert {**forked, "run_id": lived["run_id"]} == lived
    assert digests(serving, forked["run_id"]) == digests(serving, lived["run_id"])
    compared = serving("runs", "diff", lived["run_id"], forked["run_id"], "--json").json
    assert (compared["equal_epochs"], compared["first_difference"], compared["epochs"]) == (EPOCHS, None, [])
    assert serving("runs", "verify", forked["run_id"], "--anyway", "--json").json["equal"]


def test_a_fork_with_other_commands_differs_only_after_it(serving: Esper, lived: Any) -> None:
    """Goal: what if? Method: fork while the seed blends and decide nothing more; nobody decided the forked epochs
    again, everything up to them is equal, and the difference is named."""
    forked = serving("runs", "fork", lived["run_id"], "--epoch", str(FORKED), "--policy", "noop", "--json").json
    run_id = forked["run_id"]
    compared = serving("runs", "diff", lived["run_id"], run_id, "--json").json
    assert compared["equal_epochs"] >= FORKED
    assert compared["first_difference"]["epoch"] > FORKED
    assert compared["request"] == {"policy": {"a": "heuristic", "b": "noop"}}
    assert compared["end"]["loss"]["difference"] == forked["loss"] - lived["loss"]
    assert digests(serving, run_id)[:FORKED] == digests(serving, lived["run_id"])[:FORKED]
    assert forked["digest"] != lived["digest"]
    decided = [event["payload"]["epoch"] for event in serving.events("decisions", run_id=run_id)]
    assert sorted(decided) == list(range(FORKED + 1, EPOCHS + 1))
    requested = serving.events("run-requests", run_id=run_id)[0]["payload"]
    assert (requested["forked_from"], requested["forked_epochs"]) == (lived["run_id"], FORKED)
    assert serving("runs", "verify", run_id, "--anyway", "--json").json["equal"]


@pytest.mark.timeout(1500)
def test_replicates_say_what_a_policy_is_worth(serving: Esper, lived: Any) -> None:
    """Goal: what if, with an interval. Method: two pairs of forks; the pairs draw otherwise, each arm's are equal up to
    the fork, the figures follow from those of the runs, SQL knows them, and one of them computes again."""
    words = ["--at", str(EPOCHS - 4), "--policy", "noop", "--replicates", "2", "--json"]
    document = serving("runs", "fork", lived["run_id"], *words, timeout=1200).json
    assert (document["a"]["policy"], document["b"]["policy"]) == ("heuristic", "noop")
    pairs = document["pairs"]
    differences = [pair["b"]["loss"] - pair["a"]["loss"] for pair in pairs]
    effect = document["effects"]["loss"]
    assert effect["mean"] == pytest.approx(sum(differences) / 2)
    assert effect["low"] <= effect["mean"] <= effect["high"]
    first, second = (digests(serving, pair["b"]["run_id"]) for pair in pairs)
    assert first[: EPOCHS - 4] == second[: EPOCHS - 4] == digests(serving, lived["run_id"])[: EPOCHS - 4]
    assert first[EPOCHS - 4] != second[EPOCHS - 4]
    query = f"select run_id, replicate from runs where forked_from = '{lived['run_id']}' and replicate > 0"  # noqa: S608 - an id of ours
    known = {(row["run_id"], row["replicate"]) for row in serving("sql", query, "--json").json}
    assert known == {(pair[arm]["run_id"], pair["replicate"]) for pair in pairs for arm in "ab"}
    assert serving("runs", "verify", pairs[1]["b"]["run_id"], "--anyway", "--json").json["equal"]
    refused = serving("runs", "fork", pairs[0]["b"]["run_id"], "--epoch", "3")
    assert refused.code == 2
    assert "it is replicate 1 of a fork" in refused.stderr
    assert serving("runs", "fork", lived["run_id"], "--at", "3", "--replicates", "2").code == 2


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_a_killed_workers_run_ends_as_if_nothing_had_been(esper: Esper, record_property: Note) -> None:
    """Goal: no kill changes a run. Method: kill -9 of the worker at random epochs of runs whose epochs take a second;
    another attempt finishes each, from a checkpoint once there is one, with the digests of the undisturbed run."""
    chosen = random.Random(7)  # noqa: S311 - which epochs are tried, not a secret
    keeping = Esper(esper.home, esper.environment | {"ESPER_CHECKPOINT_EVERY_EPOCHS": "3"})
    words = [*SLOW, "--epochs", str(SLOW_EPOCHS), "--json"]
    restored = []
    with keeping.serving():
        undisturbed = keeping("train", *words).json
        expected = digests(keeping, undisturbed["run_id"])
        for _ in range(KILLS):
            at = chosen.randint(1, SLOW_EPOCHS - 2)
            run = keeping.spawn("train", *words)
            run_id = started_run(keeping)
            wait_for_packet(keeping, run_id, at)
            kill(keeping.member_pid("tolaria-0"))
            ended = finish(run).json
            assert {**ended, "run_id": undisturbed["run_id"]} == undisturbed
            assert digests(keeping, run_id) == expected
            restored.append(restored_epochs(keeping, run_id))
    record_property("epochs_restored_from_a_checkpoint", restored)
    assert any(restored), "no kill came after a checkpoint"


def started_run(esper: Esper) -> str:
    """Return the run that was asked for last; followed in the log, as a command would take seconds to look."""
    with Fabric.open(load_settings(_env_file=None, home=esper.home), member="cli") as fabric:
        places = dict.fromkeys(fabric.topics.partitions("runs"), "begin")
        with fabric.reader(places) as reader:
            open_runs: dict[str, None] = {}

            def claimed() -> str | None:
                for event in reader.read(0.2):
                    if isinstance(event.message, ly.TrainingRunClaimed):
                        open_runs[event.message.run_id] = None
                    elif isinstance(event.message, ly.TrainingRunFinished):
                        open_runs.pop(event.message.run_id, None)
                return next(iter(open_runs), None)

            return eventually(claimed, what="a run is claimed")


def wait_for_packet(esper: Esper, run_id: str, epoch: int) -> None:
    """Wait until the packet of an epoch is in the log."""
    with Fabric.open(load_settings(_env_file=None, home=esper.home), member="cli") as fabric:
        place = ("system-state", fabric.partition_of("system-state", run_id))
        with fabric.reader({place: "begin"}) as reader:

            def logged() -> bool:
                packets = [event.message for event in reader.read(0.2) if event.meta.subject == run_id]
                return any(isinstance(p, ly.SystemStatePacket) and p.current_epoch >= epoch for p in packets)

            eventually(logged, what=f"epoch {epoch} of {run_id}")


def restored_epochs(esper: Esper, run_id: str) -> int:
    """Return how many epochs the last attempt at a run took from a checkpoint, as it told."""
    told = [event["payload"] for event in esper.events("telemetry") if event["payload"].get("metrics")]
    points = [
        point for packet in told for point in packet["metrics"] if point.get("attributes", {}).get("run_id") == run_id
    ]
    return int(sum(p.get("value", 0.0) for p in points if p["name"] == "tolaria.takeover.restored_epochs"))
