"""A loop of one's own under torchrun: two ranks, one run in the log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.integration.driver import REPOSITORY, Esper

RANKS = 2


def torchrun(home: Path, folder: Path, fault: str = "") -> tuple[int, list[dict[str, Any]], str]:
    """Run the loop on two ranks; return the exit code, what each that lived wrote, and the run's id."""
    folder.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ESPER_")}
    environment = clean | {"ESPER_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    done = subprocess.run(
        [*command, "-m", "tests.integration.rank_loop", str(folder), fault],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    written = [folder / f"rank-{rank}.json" for rank in range(RANKS)]
    assert written[0].exists(), done.stderr[-3000:]
    reports = [json.loads(path.read_text()) for path in written if path.exists()]
    return done.returncode, reports, (folder / "run-0").read_text()


def test_two_ranks_grow_one_recorded_run(esper: Esper, tmp_path: Path) -> None:
    """Goal: one run, one network. Method: torchrun with gloo, a real broker; compare the ranks and the log."""
    code, (first, second), run_id = torchrun(esper.home, tmp_path / "ranks")
    assert code == 0, first["error"]
    assert first == second
    assert first["seeds"], "a seed grew"
    runs = esper.events("runs", run_id=run_id)
    (started,) = [event["payload"] for event in runs if event["type"].endswith("TrainingRunStarted")]
    assert (started["numerics"]["world_size"], started["numerics"]["collective"]) == (RANKS, "gloo")
    (finished,) = [event["payload"] for event in runs if event["type"].endswith("TrainingRunFinished")]
    assert finished["digest"] == first["digest"]
    assert finished["epochs"] == 10
    moves = [
        event["payload"]["to_stage"]
        for event in esper.events("seed-events", run_id=run_id)
        if "to_stage" in event["payload"]
    ]
    assert "SEED_STAGE_FOSSILIZED" in moves
    assert (tmp_path / "ranks" / "run-1").read_text() == run_id, "the second rank knows the run"


def test_a_run_whose_rank_dies_ends_as_failed(esper: Esper, tmp_path: Path) -> None:
    """Goal: no run that hangs. Method: the second rank ends without a word; the log says that the run failed."""
    code, (first, *_), run_id = torchrun(esper.home, tmp_path / "ranks", "die")
    assert code != 0
    assert first["error"].startswith("RankLost")
    (failed,) = [
        event["payload"] for event in esper.events("runs", run_id=run_id) if event["type"].endswith("TrainingRunFailed")
    ]
    assert failed["reason"] == "loop_failed"
    assert failed["detail"].startswith("RankLost")
