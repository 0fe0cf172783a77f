"""Tests of who may write: the generation that every commit finds unchanged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from esper.core.errors import Busy
from esper.projection import Definition, Projector, verify
from esper.projection.files._committed import CommittedFile
from esper.projection.files._fence import FENCE_FILE, Fence, Fenced
from esper.projection.records._ledger import Progress
from esper.projection.serving._control import find_projector
from esper.projection.sql._database import Database
from tests.conftest import RunningBroker
from tests.projection.system import own_system, state, wait_for


def _begun(partition: int = 0) -> list[Progress]:
    return [Progress("system-state", partition, "id", 0, 0)]


def _open(folder: Path, definition: Definition, fence: Fence) -> CommittedFile:
    database = Database(folder, memory_limit="100MB")
    return CommittedFile(database, definition, folder / "runs.duckdb", holds=lambda *_: [], fence=fence)


@pytest.fixture
def runs(definitions: tuple[Definition, ...]) -> Definition:
    """The projection `runs`."""
    return next(one for one in definitions if one.name == "runs")


def test_each_writer_ends_the_turn_of_the_one_before(tmp_path: Path, runs: Definition) -> None:
    """A file that is open cannot be written any more once another became the writer, nor when nobody can tell."""
    first = Fence(tmp_path)
    file = _open(tmp_path, runs, first)
    second = Fence(tmp_path)
    assert second.generation > first.generation
    with pytest.raises(Fenced, match="may not write") as caught:
        file.begin(_begun())
    assert "another process became the writer" in caught.value.cause
    assert file.progress == {}
    second.check()
    (tmp_path / FENCE_FILE).unlink()
    with pytest.raises(Fenced, match="may not write"):
        second.check()
    file.close()


def test_a_generation_never_goes_back(tmp_path: Path, runs: Definition) -> None:
    """What a file says of its last writer outlives the folder's generation: delete that, and open the file again."""
    for _ in range(5):
        fence = Fence(tmp_path)
    _open(tmp_path, runs, fence).close()
    with duckdb.connect(str(tmp_path / "runs.duckdb")) as connection:
        connection.execute("update esper.meta set generation = 41")
    (tmp_path / FENCE_FILE).unlink()
    fence = Fence(tmp_path)
    assert fence.generation == 1
    file = _open(tmp_path, runs, fence)
    assert fence.generation == 42
    file.begin(_begun())
    file.close()


def test_a_commit_that_has_begun_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody becomes the writer in the midst of a commit: raise the generation while it is held, and after."""
    monkeypatch.setattr("esper.projection.files._fence._HELD_SECONDS", 0.2)
    fence = Fence(tmp_path)
    with fence.held(), pytest.raises(Busy, match="are being written"):
        Fence(tmp_path)
    assert Fence(tmp_path).generation == fence.generation + 1


_CHILD = """
import logging, sys, threading
from esper.core.errors import EsperError
from esper.core.settings import Settings
from esper.oona import Fabric
from esper.projection import build_service

settings = Settings.model_validate_json(sys.stdin.readline())
with Fabric.open(settings, member="projector-0") as fabric:
    try:
        build_service(fabric).run(threading.Event())
    except EsperError as error:
        print(error, flush=True)
        sys.exit(7)
"""


def test_a_zombie_fails_its_next_commit(broker: RunningBroker, tmp_path: Path) -> None:
    """Suspend a projector, remove its lock by hand: DuckDB keeps others out; raise the generation: it cannot go on."""
    with own_system(broker, tmp_path) as system:
        settings = system.settings
        assert settings.leyline_secret is not None
        document = settings.model_dump(mode="json") | {"leyline_secret": settings.leyline_secret.get_secret_value()}
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdin is not None
        child.stdin.write(json.dumps(document) + "\n")
        child.stdin.flush()
        wait_for(lambda: find_projector(system.fabric.home))
        system.publish(state("run-a", 1), key="run-a")
        wait_for(lambda: system.count("run_states") == 1)
        os.kill(child.pid, signal.SIGSTOP)
        folder = system.fabric.home.projections
        (folder / "writer.lock").unlink()
        generation = Fence(folder).generation
        system.publish(state("run-a", 2), key="run-a")
        os.kill(child.pid, signal.SIGCONT)
        said, _ = child.communicate(timeout=60)
        assert child.returncode == 7
        assert f"it is {generation} by now" in said
        assert system.count("run_states") == 1
        with system.projector():
            wait_for(lambda: system.count("run_states") == 2)
            assert verify(system.fabric)["equal"]


def test_a_second_projector_does_not_start_beside_a_suspended_one(
    broker: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the lock file gone, DuckDB's own lock still keeps the second out: it says which file is in use."""
    import threading

    monkeypatch.setattr("esper.projection.serving._writable._CLOSE_SECONDS", 0.1)
    with own_system(broker, tmp_path, sql_timeout_seconds=0.5) as system:
        hold = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
        with system.projector():
            system.publish(state("run-a", 1), key="run-a")
            wait_for(lambda: system.count("run_states") == 1)
        [path] = system.fabric.home.projections.glob("runs-*.duckdb")
        with subprocess.Popen(
            [sys.executable, "-c", hold, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdin is not None
            assert other.stdout is not None
            assert other.stdout.readline() == b"held\n"
            with pytest.raises(Busy, match="is in use"):
                Projector(system.fabric).run(threading.Event())
            other.stdin.close()
