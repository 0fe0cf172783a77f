"""The code in the docs runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.driver import REPOSITORY, Esper

#: Stages in which the host hears a seed.
HEARD = {"BLENDING", "SHADOWING", "PROBATIONARY", "FOSSILIZED"}


def blocks(page: str, language: str = "python") -> list[str]:
    """Return the blocks of one language on a page."""
    pattern = rf"^```{language}\n(.*?)^```"
    return re.findall(pattern, (REPOSITORY / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)


def test_a_loop_of_ones_own_grows(serving: Esper) -> None:
    """Goal: docs/grow.md keeps its word. Method: run its block as a script, read the run from the log."""
    script = blocks("grow.md")[0]
    assert len([line for line in script.splitlines() if line.strip()]) <= 24
    answer = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"ESPER_HOME": str(serving.home)}, capture_output=True,
        text=True, timeout=240,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    run_id, _, seeds = answer.stdout.partition(" ")
    assert "BP" in seeds, "a seed was germinated"
    shown = serving("runs", "show", run_id, "--json").json
    assert shown["status"] == "finished"
    assert [epoch["outcome"] for epoch in shown["epochs"]].count("applied") >= 15
    assert "FOSSILIZED" in {seed["stage"] for seed in shown["seeds"]}
    requests = serving.events("run-requests", run_id=run_id)
    assert not requests[0]["payload"].get("re_executable", False)


def test_a_model_of_somebody_elses_grows(serving: Esper, tmp_path: Path) -> None:
    """Goal: docs/grow.md's transformer grows and leaves. Method: run its block, read the run, open the export."""
    script = blocks("grow.md")[1]
    assert len([line for line in script.splitlines() if line.strip()]) < 24
    answer = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"ESPER_HOME": str(serving.home)}, cwd=tmp_path,
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    run_id, _, slots = answer.stdout.partition(" ")
    assert slots.strip() == "['0']", "a seed was germinated beside the encoder"
    shown = serving("runs", "show", run_id, "--json").json
    assert (shown["status"], len(shown["epochs"])) == ("finished", 10)
    assert (tmp_path / "grown.py").is_file()
    assert (tmp_path / "grown.safetensors").stat().st_size > 1_000


@pytest.mark.parametrize(("block", "slot"), [(2, "layer1.0"), (3, "transformer.h.0")], ids=["resnet18", "gpt2"])
def test_a_model_of_a_library_grows(serving: Esper, block: int, slot: str) -> None:
    """Goal: docs/grow.md's ResNet-18 and GPT-2 grow. Method: run each block; the log says that a seed became heard."""
    script = blocks("grow.md")[block]
    assert len([line for line in script.splitlines() if line.strip()]) < 20
    answer = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"ESPER_HOME": str(serving.home), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    run_id = answer.stdout.partition(" ")[0]
    shown = serving("runs", "show", run_id, "--json").json
    assert (shown["status"], len(shown["epochs"])) == ("finished", 8)
    assert [(seed["slot"], seed["stage"] in HEARD) for seed in shown["seeds"]] == [(slot, True)], shown["seeds"]
    moved = [event["payload"] for event in serving.events("seed-events", run_id=run_id)]
    assert any(move.get("to_stage") == "SEED_STAGE_BLENDING" for move in moved)


def test_a_task_of_ones_own_is_trained(esper: Esper, tmp_path: Path) -> None:
    """Goal: docs/tasks.md keeps its word. Method: save its module where Python finds it, train it, ask SQL at once."""
    (tmp_path / "wine_task.py").write_text(blocks("tasks.md")[0])
    esper.environment["PYTHONPATH"] = str(tmp_path)
    words = ["--task", "wine_task:wine", "--host", "mlp", "--epochs", "3", "--policy", "noop"]
    document = esper("train", *words, "--json").json
    assert document["task"] == "wine_task:wine"
    assert document["multiply_adds_per_sample"] == 13 * 4 + 4 * 3
    rows = esper("sql", "select run_id, status from runs", "--json").json
    assert rows == [{"run_id": document["run_id"], "status": "finished"}]


def test_the_log_is_read_as_shown(serving: Esper, tmp_path: Path) -> None:
    """Goal: docs/events.md keeps its word. Method: grow a run, run every block of the page in order."""
    trained = serving("train", "--task", "mnist1d", "--host", "mlp", "--policy", "heuristic", "--epochs", "12")
    assert trained.code == 0, trained.stderr
    script = "\n".join(["set -euo pipefail", *blocks("events.md", "sh")])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"ESPER_HOME": str(serving.home), "PATH": path, "COLUMNS": "400"}
    shown = subprocess.run(
        ["bash", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500
    )
    assert shown.returncode == 0, shown.stderr
    for word in ("state", "decision", "command", "gate", "move", "outcome", "report"):
        assert f"─ {word}  " in shown.stdout, shown.stdout[-4000:]
    assert (tmp_path / "esper.binpb").stat().st_size > 0
    (code,) = blocks("events.md")
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=240)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("state epoch ")
    assert "topic='telemetry'" in answer.stdout


def test_an_evaluation_is_stated_run_and_judged(esper: Esper, tmp_path: Path) -> None:
    """Goal: docs/evaluation.md keeps its word. Method: save its plan, run its commands, judge with its Python."""
    (tmp_path / "small.yaml").write_text(blocks("evaluation.md", "yaml")[0])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"ESPER_HOME": str(esper.home), "PATH": path, "COLUMNS": "400"}
    script = "\n".join(["set -euo pipefail", blocks("evaluation.md", "sh")[1]])
    shown = subprocess.run(
        ["bash", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500
    )
    assert shown.returncode == 0, shown.stderr
    assert "verdict: BLOCKED" in shown.stdout
    assert "evaluation/" in shown.stdout
    assert (tmp_path / "report" / "curves_epoch.svg").stat().st_size > 0
    (code,) = blocks("evaluation.md")
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert answer.returncode == 0, answer.stderr
    word, _, reason = answer.stdout.partition("\n")
    assert word == "BLOCKED"
    assert reason
