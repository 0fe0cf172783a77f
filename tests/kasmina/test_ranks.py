"""Several ranks train one host: seeds outside torch's wrapper learn from averaged gradients, and nobody parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.brokers import free_port

REPOSITORY = Path(__file__).parents[2]


def ranks(folder: Path, *, count: int = 2) -> tuple[int, list[dict[str, Any]]]:
    """Run the workers under torchrun; return its exit code and what each rank wrote."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    done = subprocess.run(
        [*command, "-m", "tests.kasmina.rank_worker", str(folder)],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.returncode, reports(folder, count, done.stderr)


def unsupervised_ranks(folder: Path, fault: str, *, count: int = 2) -> tuple[list[int], list[dict[str, Any]]]:
    """Run the workers by themselves; return the exit code of each, and what those wrote that could.

    torchrun ends every rank as soon as it sees one that has ended, which may be before the others have noticed.
    """
    shared = environment() | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    with ExitStack() as stack:
        started = []
        for rank in range(count):
            output = stack.enter_context((folder / f"rank-{rank}.txt").open("w"))
            command = [sys.executable, "-m", "tests.kasmina.rank_worker", str(folder), fault]
            one = subprocess.Popen(
                command, cwd=REPOSITORY, env=shared | {"RANK": str(rank)}, stdout=output, stderr=output
            )
            stack.callback(one.wait)
            stack.callback(one.kill)
            started.append(one)
        codes = [one.wait(timeout=240) for one in started]
    said = "\n".join((folder / f"rank-{rank}.txt").read_text() for rank in range(count))
    return codes, reports(folder, count, said)


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def reports(folder: Path, count: int, said: str) -> list[dict[str, Any]]:
    found = [folder / f"rank-{rank}.json" for rank in range(count)]
    assert found[0].exists(), said[-3000:]
    return [json.loads(path.read_text()) for path in found if path.exists()]


def test_ranks_grow_one_network(tmp_path: Path) -> None:
    """Goal: equal digests. Method: two ranks, each its own batches, clipped; a seed from germination to fossil."""
    code, (first, second) = ranks(tmp_path)
    assert code == 0, first["error"]
    assert first == second
    assert len(set(first["digests"])) == 9
    assert first["stages"] == ["SEED_STAGE_FOSSILIZED"]


def test_ranks_that_part_are_stopped_by_name(tmp_path: Path) -> None:
    """Goal: a difference is an error, never a record. Method: change one weight of one rank; both must say so."""
    codes, found = unsupervised_ranks(tmp_path, "part")
    assert codes == [70, 70]
    assert len(found) == 2
    for report in found:
        assert report["error"].startswith("IntegrityError: the ranks do not agree on the weights of epoch 4")


def test_a_dead_rank_ends_the_others(tmp_path: Path) -> None:
    """Goal: no hang. Method: one rank ends without a word; the other ends too, and names what happened."""
    codes, found = unsupervised_ranks(tmp_path, "die")
    assert codes == [70, 9]
    (survivor,) = found
    assert survivor["error"].startswith("RankLost: rank 0 of 2 cannot go on")


def test_what_one_rank_saw_counts_for_all(tmp_path: Path) -> None:
    """Goal: ranks judge alike. Method: a value that is not finite on one rank; the seed is culled on both."""
    codes, (first, second) = unsupervised_ranks(tmp_path, "unsound")
    assert codes == [0, 0], first["error"]
    assert first == second
    assert first["stages"] == ["SEED_STAGE_DORMANT"], "it was culled, and its slot reset"
