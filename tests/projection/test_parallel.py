"""Tests of rebuilds for which other processes read: the same files, and no waiting for a process that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from esper.core.clock import Deadline
from esper.core.errors import OperationFailed
from esper.leyline import messages as ly
from esper.projection import Definition, load_definitions
from esper.projection.building._building import building, log_ends
from esper.projection.files._contents import Contents, read_contents
from esper.projection.sql._database import Database
from tests.conftest import RunningBroker
from tests.projection.log import finish, one_run
from tests.projection.system import PATIENCE_SECONDS, System, own_system

_NAMES = ("field_reports", "runs", "urza_catalog")


def _definitions(system: System) -> tuple[Definition, ...]:
    found = load_definitions(system.settings, system.fabric.topics)
    return tuple(one for one in found if one.name in _NAMES)


def _built(system: System, folder: Path, *, readers: int) -> list[Contents]:
    """Build some projections up to the end of the log; return what they hold."""
    folder.mkdir()
    chosen = _definitions(system)
    paths = {one.name: folder / f"{one.name}.duckdb" for one in chosen}
    deadline = Deadline(PATIENCE_SECONDS)
    with building(system.fabric, chosen, paths, readers=readers) as (_, folding):
        folding.start()
        while not folding.reached(log_ends(system.fabric, chosen)):
            folding.step(0.1)
            assert not deadline.expired, "the end was not reached in time"
    database = Database(folder, memory_limit="512MB")
    for one in chosen:
        database.attach(paths[one.name], one.name, read_only=True)
    contents = [read_contents(database, one) for one in chosen]
    database.close()
    return contents


def test_processes_that_read_change_nothing(broker: RunningBroker, tmp_path: Path) -> None:
    """Rebuild with no, one and three reading processes: every table, offset and account is equal; bad ones included."""
    with own_system(broker, tmp_path) as system:
        for number in range(6):
            one_run(system, f"run-{number}")
            finish(system, f"run-{number}")
        system.publish(ly.KernelCatalogUpdate(kernel_id="k"), key="k")
        alone = _built(system, tmp_path / "alone", readers=0)
        assert sum(one.applied for contents in alone for one in contents.progress) > 100
        assert _built(system, tmp_path / "one", readers=1) == alone
        assert _built(system, tmp_path / "three", readers=3) == alone


def _fold_with_killed_readers(system: System, folder: Path) -> None:
    """Begin a rebuild, kill the processes that read for it, and fold on."""
    chosen = _definitions(system)
    paths = {one.name: folder / f"{one.name}.duckdb" for one in chosen}
    before = set(psutil.Process().children(recursive=True))
    with building(system.fabric, chosen, paths, readers=2) as (_, folding):
        folding.start()
        for child in set(psutil.Process().children(recursive=True)) - before:
            if "spawn_main" in " ".join(child.cmdline()):
                os.kill(child.pid, signal.SIGKILL)
        deadline = Deadline(PATIENCE_SECONDS)
        while not deadline.expired:
            folding.step(0.1)


_ORPHANING = """
import sys, time
from pathlib import Path
import psutil
from esper.core.settings import load_settings
from esper.oona import Fabric
from esper.projection import load_definitions
from esper.projection.building._building import building, log_ends

if __name__ == "__main__":
    with Fabric.open(load_settings(_env_file=None, home=Path(sys.argv[1])), member="test") as fabric:
        chosen = tuple(one for one in load_definitions(fabric.settings, fabric.topics) if one.name == "runs")
        with building(fabric, chosen, {"runs": Path(sys.argv[2]) / "runs.duckdb"}, readers=2) as (_, folding):
            folding.start()
            while not folding.reached(log_ends(fabric, chosen)):
                folding.step(0.1)
            print(*(child.pid for child in psutil.Process().children()), flush=True)
            time.sleep(600)  # until the test kills it
"""


def test_readers_end_with_whom_they_read_for(local_broker: RunningBroker, tmp_path: Path) -> None:
    """Goal: a rebuild that is killed leaves no process behind. Method: kill -9 it when its readers wait for more."""
    script = tmp_path / "orphaning.py"
    script.write_text(_ORPHANING)
    command = [sys.executable, str(script), str(local_broker.home.root), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        readers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        assert len(readers) >= 2
        process.kill()
        process.wait(PATIENCE_SECONDS)
        _, alive = psutil.wait_procs(readers, timeout=PATIENCE_SECONDS)
    assert not alive


def test_a_reader_that_is_killed_ends_the_rebuild(broker: RunningBroker, tmp_path: Path) -> None:
    """Nobody waits for a process that is gone: kill the readers, and the next steps say so."""
    with own_system(broker, tmp_path) as system:
        one_run(system, "run-a")
        with pytest.raises(OperationFailed, match="a process that reads the log ended"):
            _fold_with_killed_readers(system, tmp_path)
