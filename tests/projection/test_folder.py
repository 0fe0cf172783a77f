"""Tests of the files of a home's projections: which one counts, and what is tidied away."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from esper.core.errors import Busy, NotReadyError
from esper.core.settings import Settings
from esper.projection import Definition
from esper.projection.definitions._definition import shipped_projections_dir
from esper.projection.definitions._folder import ProjectionFolder
from esper.projection.definitions._versions import keep_definition, kept_definition, readable_definitions, remove_unused
from tests.projection.log import TOPICS


def _named(definitions: tuple[Definition, ...], name: str) -> Definition:
    return next(one for one in definitions if one.name == name)


def test_the_highest_generation_counts(tmp_path: Path, definitions: tuple[Definition, ...]) -> None:
    """Of all files of a projection, of any version, the last counts, the one before is kept, the others go."""
    folder, runs = ProjectionFolder(tmp_path), _named(definitions, "runs")
    older = replace(runs, version="0" * 16)
    assert folder.live("runs") is folder.kept("runs") is folder.current(runs) is None
    paths = []
    for one in (runs, older, runs):
        paths.append(folder.next(one))
        paths[-1].touch()
    foreign = tmp_path / f"urza_catalog-{'0' * 16}.7.duckdb"
    foreign.touch()
    (tmp_path / "notes.duckdb").touch()

    assert [path.name.split(".")[1] for path in paths] == ["1", "2", "3"]
    live, kept = folder.live("runs"), folder.kept("runs")
    assert live is not None
    assert kept is not None
    assert (live.path, kept.path) == (paths[2], paths[1])
    folder.remove_older("runs")
    assert {one.path for one in folder.files()} == {*paths[1:], foreign}
    after = tmp_path / f"runs-{runs.version}.9.duckdb"
    assert folder.next(runs, after=after).name == f"runs-{runs.version}.10.duckdb"


def test_one_rename_makes_a_file_count(tmp_path: Path, definitions: tuple[Definition, ...]) -> None:
    """A rollback gives the kept file the next generation, and says so; a version that comes back does so by itself."""
    folder, runs = ProjectionFolder(tmp_path), _named(definitions, "runs")
    older = replace(runs, version="0" * 16)
    for one in (older, runs):
        folder.next(one).touch()
    kept = folder.kept("runs")
    assert kept is not None

    path = folder.promote(older, kept.path, pinned=True)

    assert path.name == f"runs-{older.version}.3.pinned.duckdb"
    live = folder.live("runs")
    assert live is not None
    assert (live.path, live.pinned, live.version) == (path, True, older.version)
    assert folder.current_or_new(runs).name == f"runs-{runs.version}.4.duckdb"


def test_versions_are_kept_with_their_files(tmp_path: Path, definitions: tuple[Definition, ...]) -> None:
    """What a version is made of is read back exactly, checked by its hash, and forgotten with its last file."""
    folder, runs = ProjectionFolder(tmp_path), _named(definitions, "runs")
    keep_definition(folder, runs)
    keep_definition(folder, runs)
    assert kept_definition(folder, "runs", runs.version, TOPICS) == runs
    with pytest.raises(NotReadyError, match="cannot be folded any more"):
        kept_definition(folder, "runs", "0" * 16, TOPICS)
    path = folder.next(runs)
    path.touch()
    remove_unused(folder)
    text = tmp_path / "definitions" / runs.version / "runs" / "views.sql"
    text.write_text(text.read_text() + "\n-- changed\n")
    with pytest.raises(NotReadyError, match="this Esper makes version"):
        kept_definition(folder, "runs", runs.version, TOPICS)
    path.unlink()
    remove_unused(folder)
    assert list((tmp_path / "definitions").iterdir()) == []


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


def test_a_broken_folder_costs_nobody_his_answers(
    tmp_path: Path, definitions: tuple[Definition, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """Of a folder that cannot be read the version counts that was built, if one was; the others are as they were."""
    own = Path(shutil.copytree(shipped_projections_dir(), tmp_path / "own"))
    settings = Settings(_env_file=None, projections_dir=own)
    folder, runs = ProjectionFolder(tmp_path / "files"), _named(definitions, "runs")
    (own / "runs" / "fold.sql").write_text("insert into nowhere")
    others = {one.name for one in definitions} - {"runs"}
    assert {one.name for one in readable_definitions(settings, TOPICS, folder)} == others
    assert "projection runs" in caplog.text
    folder.path.mkdir()
    folder.next(runs).touch()
    keep_definition(folder, runs)
    assert _named(readable_definitions(settings, TOPICS, folder), "runs") == runs
