"""The code in the docs runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.integration.driver import REPOSITORY, Esper


def blocks(page: str) -> list[str]:
    """Return the Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)


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
