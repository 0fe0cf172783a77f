"""A grown network leaves Esper: its files compute the same in a process that has none of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

import esper
from esper.core.settings import Settings
from esper.leyline import messages as ly
from esper.tolaria import load_task
from tests.integration.driver import Esper

HEARD = {
    ly.SEED_STAGE_BLENDING,
    ly.SEED_STAGE_SHADOWING,
    ly.SEED_STAGE_PROBATIONARY,
    ly.SEED_STAGE_FOSSILIZED,
}
#: Opens both formats where esper cannot be imported, and writes what they make of the given inputs.
STRANGER = """
import sys
sys.modules["esper"] = None
try:
    import esper
except ImportError:
    pass
else:
    raise SystemExit("esper is here")
import torch
from safetensors.torch import load_file, save_file
import net
inputs = load_file("inputs.safetensors")["inputs"]
with torch.no_grad():
    readable = net.load()(inputs)
    program = torch.export.load("net.pt2").module()(inputs)
save_file({"readable": readable, "program": program}, "outputs.safetensors")
"""


def as_a_stranger(folder: Path, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what both exports in `folder` make of `inputs`, computed in a process without esper."""
    save_file({"inputs": inputs}, folder / "inputs.safetensors")
    stranger = subprocess.run(
        [sys.executable, "-c", STRANGER], cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )
    assert stranger.returncode == 0, stranger.stderr
    return load_file(folder / "outputs.safetensors")


@pytest.fixture(scope="module")
def recorded(serving: Esper) -> Any:
    """A run that ended with seeds in its network."""
    words = ["--task", "mnist1d", "--host", "mlp", "--policy", "heuristic", "--epochs", "16", "--seed", "7"]
    document = serving("train", *words, "--json").json
    assert {seed["stage"] for seed in document["seeds"]} & {"BLENDING", "SHADOWING", "PROBATIONARY", "FOSSILIZED"}
    return document


def test_a_recorded_run_is_exported(serving: Esper, recorded: Any, tmp_path: Path) -> None:
    """Goal: `runs export` gives the network that the log tells of. Method: both formats, judged by a stranger."""
    for name in ("net.safetensors", "net.pt2"):
        document = serving("runs", "export", recorded["run_id"], "--to", str(tmp_path / name), "--json").json
        assert document["epochs"] == recorded["epochs"]
        assert document["difference"] <= 1e-5
    assert document["files"] == [str(tmp_path / "net.pt2")]
    test = load_task("mnist1d").test
    outputs = as_a_stranger(tmp_path, test.inputs)
    for name in ("readable", "program"):
        accuracy = float((outputs[name].argmax(dim=1) == test.targets).double().mean())
        assert accuracy == pytest.approx(recorded["accuracy"], abs=1e-9)
        loss = float(functional.cross_entropy(outputs[name], test.targets))
        assert loss == pytest.approx(recorded["loss"], abs=1e-5)
    grown = [name for name in load_file(tmp_path / "net.safetensors") if "esper_" in name]
    assert grown, "the seeds' weights carry their names"


def test_what_cannot_be_exported_is_refused(serving: Esper, recorded: Any, tmp_path: Path) -> None:
    """Goal: errors that help. Method: a wrong ending, a folder or run that is not there, a program in the way."""
    run_id = recorded["run_id"]
    wrong = serving("runs", "export", run_id, "--to", str(tmp_path / "net.onnx"))
    assert (wrong.code, "safetensors, pt2" in wrong.stderr) == (2, True)
    nowhere = serving("runs", "export", run_id, "--to", str(tmp_path / "no" / "net.pt2"))
    assert (nowhere.code, "there is no folder" in nowhere.stderr) == (2, True)
    unknown = serving("runs", "export", "run-unknown", "--to", str(tmp_path / "net.pt2"))
    assert (unknown.code, "there is no run" in unknown.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine.py").write_text("import esper\n")
    mine = serving("runs", "export", run_id, "--to", str(tmp_path / "mine.safetensors"))
    assert (mine.code, "mine.py" in mine.stderr, "another name" in mine.stderr) == (2, True, True)
    assert (tmp_path / "mine.py").read_text() == "import esper\n"


def test_a_run_under_grow_is_exported(serving: Esper, tmp_path: Path) -> None:
    """Goal: `run.export` gives what the model computes. Method: one with a grown seed, judged by a stranger."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.1), nn.Linear(4, 10))
    data = load_task("digits")
    probe = data.validation.inputs, data.validation.targets
    batches = list(zip(data.train.inputs.split(32), data.train.targets.split(32), strict=True))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with esper.grow(
        model,
        slots=["0"],
        optimizer=optimizer,
        loss_fn=functional.cross_entropy,
        probe=[probe],
        policy="fixed",
        epochs=10,
        settings=Settings(home=serving.home),
    ) as run:
        for _ in range(10):
            for inputs, targets in batches:
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(inputs), targets)
                loss.backward()
                optimizer.step()
                run.step((inputs, targets))
            run.end_epoch({"loss": float(loss.detach())})
        was_training = model.training
        exported = [run.export(tmp_path / f"net.{to}", to=to) for to in ("safetensors", "pt2")]
        assert model.training == was_training
    assert [file.name for one in exported for file in one.files] == ["net.safetensors", "net.py", "net.pt2"]
    held_out = data.test.inputs
    outputs = as_a_stranger(tmp_path, held_out)
    model.eval()
    with torch.no_grad():
        expected = model(held_out)
    for name in ("readable", "program"):
        torch.testing.assert_close(outputs[name], expected, rtol=1e-5, atol=1e-5)
    assert [seed for seed in run.seeds if seed.stage in HEARD], "a seed is heard"
    points = [point for event in serving.events("telemetry") for point in event["payload"].get("metrics", [])]
    told = {point["name"] for point in points if point.get("attributes", {}).get("run_id") == run.run_id}
    assert told >= {"kasmina.fetch.latency_ms", "kasmina.cache.hits", "kasmina.graft.stall_ms"}
