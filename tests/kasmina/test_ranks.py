"""Several ranks train one host: seeds outside torch's wrapper learn from averaged gradients, and nobody parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from esper.core.clock import SYSTEM_CLOCK

REPOSITORY = Path(__file__).parents[2]


def ranks(folder: Path, fault: str = "", *, count: int = 2) -> tuple[int, list[dict[str, Any]], float]:
    """Run the workers under torchrun; return its exit code, what each rank wrote, and the seconds it took."""
    began = SYSTEM_CLOCK.monotonic()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*command, "-m", "tests.kasmina.rank_worker", str(folder), fault],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    found = [folder / f"rank-{rank}.json" for rank in range(count)]
    assert found[0].exists(), done.stderr[-3000:]
    reports = [json.loads(path.read_text()) for path in found if path.exists()]
    return done.returncode, reports, SYSTEM_CLOCK.monotonic() - began


def test_ranks_grow_one_network(tmp_path: Path) -> None:
    """Goal: equal digests. Method: two ranks, each its own batches, clipped; a seed from germination to fossil."""
    code, (first, second), _ = ranks(tmp_path)
    assert code == 0, first["error"]
    assert first == second
    assert len(set(first["digests"])) == 9
    assert first["stages"] == ["SEED_STAGE_FOSSILIZED"]


def test_ranks_that_part_are_stopped_by_name(tmp_path: Path) -> None:
    """Goal: a difference is an error, never a record. Method: change one weight of one rank; both must say so."""
    code, reports, _ = ranks(tmp_path, "part")
    assert code != 0
    assert len(reports) == 2
    for report in reports:
        assert report["error"].startswith("IntegrityError: the ranks do not agree on the weights of epoch 4")


def test_a_dead_rank_ends_the_others(tmp_path: Path) -> None:
    """Goal: no hang. Method: one rank ends without a word; the other's error names what happened."""
    code, reports, seconds = ranks(tmp_path, "die")
    assert code != 0
    assert reports[0]["error"].startswith("RankLost: rank 0 of 2 cannot go on")
    assert seconds < 200


def test_what_one_rank_saw_counts_for_all(tmp_path: Path) -> None:
    """Goal: ranks judge alike. Method: a value that is not finite on one rank; the seed is culled on both."""
    code, (first, second), _ = ranks(tmp_path, "unsound")
    assert code == 0, first["error"]
    assert first == second
    assert first["stages"] == ["SEED_STAGE_DORMANT"], "it was culled, and its slot reset"
