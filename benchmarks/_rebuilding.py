"""One rebuild in a process of its own, so that its memory is its own too.

python -m benchmarks._rebuilding HOME READERS live|cold NAME... -> one line of JSON
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from esper.core.settings import load_settings
from esper.oona import Fabric
from esper.projection import load_definitions
from esper.projection.building._building import STEP_SECONDS, building, log_ends


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild did: `seconds` from the start of its reading to its files being closed."""

    records: int
    applied: int
    seconds: float
    #: Most memory that the writing process, and the largest of those that read for it, ever held.
    peak_mib: float
    reader_peak_mib: float
    file_bytes: int

    @property
    def events_per_second(self) -> float:
        """Records read, verified, decoded and committed a second."""
        return self.records / self.seconds


def rebuild(home: Path, names: Sequence[str], *, readers: int, cold: bool = False) -> Rebuilt:
    """Build projections from the beginning of the log in a new process, for which so many others read.

    With `cold` what is sealed is read from the archive.
    """
    command = [
        sys.executable,
        "-m",
        "benchmarks._rebuilding",
        str(home),
        str(readers),
        "cold" if cold else "live",
        *names,
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Rebuilt(**json.loads(done.stdout))


def _rebuild_here(home: Path, names: Sequence[str], readers: int, *, cold: bool) -> Rebuilt:
    with Fabric.open(load_settings(home=home), member="bench") as fabric:
        chosen = tuple(one for one in load_definitions(fabric.settings, fabric.topics) if one.name in names)
        fabric.home.projections.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=fabric.home.projections) as folder:
            paths = {one.name: Path(folder) / f"{one.name}.duckdb" for one in chosen}
            ends = log_ends(fabric, chosen)
            began = time.perf_counter()
            with building(fabric, chosen, paths, readers=readers, cold=cold) as (files, folding):
                folding.start()
                while not folding.reached(ends):
                    folding.step(STEP_SECONDS)
                progress = [one for file in files.values() for one in file.progress.values()]
            seconds = time.perf_counter() - began
            size = sum(path.stat().st_size for path in paths.values())
    return Rebuilt(
        sum(one.read for one in progress),
        sum(one.applied for one in progress),
        seconds,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        size,
    )


if __name__ == "__main__":
    _, root, count, kind, *chosen_names = sys.argv
    print(json.dumps(vars(_rebuild_here(Path(root), chosen_names, int(count), cold=kind == "cold"))))
