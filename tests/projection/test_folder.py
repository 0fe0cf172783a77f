"""Tests of the files of a home's projections: which one counts, and what is tidied away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from esper.core.errors import Busy
from esper.projection import Definition
from esper.projection._folder import ProjectionFolder


def test_the_highest_generation_counts(tmp_path: Path, definitions: tuple[Definition, ...]) -> None:
    """Of several files of a version the last counts and the others go; other versions stay."""
    folder, runs = ProjectionFolder(tmp_path), definitions[1]
    assert folder.current(runs) is None
    paths = []
    for _ in range(3):
        paths.append(folder.next(runs))
        paths[-1].touch()
    other = tmp_path / f"runs-{'0' * 16}.7.duckdb"
    other.touch()
    (tmp_path / "notes.duckdb").touch()

    assert [path.name.split(".")[1] for path in paths] == ["1", "2", "3"]
    assert folder.current_or_new(runs) == paths[2]
    folder.remove_older(runs)
    assert {one.path for one in folder.files()} == {paths[2], other}
    assert folder.next(runs, after=tmp_path / f"runs-{runs.version}.9.duckdb").name == f"runs-{runs.version}.10.duckdb"


def test_what_dead_processes_left_goes(tmp_path: Path, definitions: tuple[Definition, ...]) -> None:
    """A file half-built by a process that is gone is deleted with its log; one of a living process stays."""
    folder = ProjectionFolder(tmp_path)
    mine = folder.building(definitions[0])
    mine.touch()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead = Path(str(mine).replace(f"-{os.getpid()}-", f"-{child.pid}-"))
    dead.touch()
    Path(f"{dead}.wal").touch()
    folder.remove_abandoned()
    assert list(tmp_path.iterdir()) == [mine]


def test_files_set_aside_do_not_meet(tmp_path: Path, definitions: tuple[Definition, ...]) -> None:
    """Every damaged file is kept under a name of its own, with its write-ahead log."""
    folder = ProjectionFolder(tmp_path)
    path = folder.next(definitions[0])
    for number in (1, 2):
        path.write_text(str(number))
        Path(f"{path}.wal").write_text(str(number))
        kept = folder.set_aside(path)
        assert kept.read_text() == Path(f"{kept}.wal").read_text() == str(number)
    assert not path.exists()
    assert folder.files() == []


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    """The lock excludes others while it is held, and no longer."""
    folder = ProjectionFolder(tmp_path / "new")
    other = ProjectionFolder(tmp_path / "new")
    with folder.writing(seconds=0.1), pytest.raises(Busy, match="being written"), other.writing(seconds=0.05):
        pytest.fail("two processes write")
    with folder.writing(seconds=0.1):
        pass
