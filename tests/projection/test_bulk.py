"""Tests of files that commit seldom: the same tables, and nothing of a transaction that did not come to its end."""

from __future__ import annotations

import random
from pathlib import Path

import duckdb
import pytest

from esper.core.errors import OperationFailed
from esper.projection import Definition
from esper.projection.columnar import ArrowDecoder
from esper.projection.files._bulk import BulkFile
from esper.projection.intake._admission import Admission
from esper.projection.sql._database import Database, UnreadableFile, fault
from tests.projection.conftest import OpenWorkbench, Workbench
from tests.projection.every_event import every_event
from tests.projection.log import TOPICS, Log, admitted, mixed, one_epoch, one_run

_STATES = "select count(*) from run_states"


@pytest.mark.parametrize("records_max", [1, 7, 1_000_000])
def test_when_it_commits_does_not_show(open_workbench: OpenWorkbench, records_max: int) -> None:
    """Events of every type, copies and forgeries, folded twice: contents equal those of a file that always commits."""
    log = every_event(random.Random(7), each=2)  # noqa: S311 - a seeded log
    often, seldom = open_workbench(log, "often"), open_workbench(log, "seldom", bulk=records_max)
    for _ in range(2):
        assert seldom.fold() == often.fold()
        for definition in often.definitions:
            assert seldom.contents(definition.name) == often.contents(definition.name)
        assert seldom.rows("select topic from runs.esper.accounts where not adds_up") == []
        mixed(log)


def _file(bench: Workbench) -> BulkFile:
    file = bench.files["runs"]
    assert isinstance(file, BulkFile)
    return file


def test_nothing_is_committed_before_its_time(open_workbench: OpenWorkbench) -> None:
    """Between two commits others see what was committed last, and the file itself stands where it has read to."""
    log = Log()
    one_run(log)
    bench = open_workbench(log, bulk=1_000_000)
    bench.fold()
    assert bench.rows(_STATES) == [(3,)]
    one_epoch(log, "run-a", 4)
    before = {place: one.next_offset for place, one in _file(bench).progress.items()}
    taken = bench.folding._intake.take(0)
    while taken is None:  # ends with the batch
        taken = bench.folding._intake.take(0)
    assert _file(bench).fold(taken.batch) > 0
    assert bench.rows(_STATES) == [(3,)]
    assert {place: one.next_offset for place, one in _file(bench).progress.items()} != before
    _file(bench).settle()
    assert bench.rows(_STATES) == [(4,)]
    _file(bench).settle()
    assert bench.rows("select topic from runs.esper.accounts where not adds_up") == []


def test_it_commits_before_memory_fills(open_workbench: OpenWorkbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of any size wait in memory for a commit: as much as may wait is a number of bytes too."""
    log = Log()
    bench = open_workbench(log, bulk=1_000_000)
    file = _file(bench)
    monkeypatch.setattr(file, "settle", lambda: None)
    one_run(log)
    bench.fold()
    assert bench.rows(_STATES) == [(0,)], "nobody settled it"
    monkeypatch.setattr(file, "_bytes_max", 1)
    one_epoch(log, "run-a", 4)
    bench.fold()
    assert bench.rows(_STATES) == [(4,)]


def test_after_a_failure_nothing_of_it_is_there_and_nothing_follows(
    open_workbench: OpenWorkbench, definitions: tuple[Definition, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out in the second fold of a transaction: told, all of it rolled back, no fold behind the gap."""
    log = Log()
    one_run(log)
    bench = open_workbench(log, bulk=1_000_000)
    bench.fold()
    file = _file(bench)
    insert, calls = file._insert_facts, iter((False, True))

    def short(*arguments: object) -> None:
        insert(*arguments)  # type: ignore[arg-type]  # passed on as they came
        if next(calls):
            raise duckdb.OutOfMemoryException("Out of Memory Error: full")

    monkeypatch.setattr(file, "_insert_facts", short)
    before = list(log.source.records)
    for epoch in (4, 5):
        one_epoch(log, "run-a", epoch)
    late = [one for one in log.source.records[len(before) :] if one.topic == "system-state"]
    admission = Admission(
        keyring=log.keyring, allowed=TOPICS.allowed, wanted=file.definition.types, decoder=ArrowDecoder()
    )
    first, second = (admitted(admission, [one]) for one in late)
    assert file.fold(first) == 1
    with pytest.raises(OperationFailed, match="projection runs cannot be built") as caught:
        file.fold(second)
    assert "ESPER_REBUILD_MEMORY_LIMIT" in caught.value.next_step
    assert bench.rows(_STATES) == [(3,)]
    with pytest.raises(AssertionError, match="built anew"):
        file.fold(first)
    bench.close()
    database = Database(bench.folder, memory_limit="512MB")
    runs = next(one for one in definitions if one.name == "runs")
    again = BulkFile(database, runs, bench.folder / "runs.duckdb", holds=log.holds)
    assert sum(one.read for one in again.progress.values()) == sum(one.topic in runs.topics for one in before)
    assert database.cursor().execute("select count(*) from runs.run_states").fetchall() == [(3,)]
    again.close()
    database.close()


def test_a_rebuild_spills_where_a_query_fails(tmp_path: Path) -> None:
    """Goal: memory ends a question, not a rebuild. Method: 60 MB of rows in 48, with a folder and without."""
    rows = "create temp table much as select i, hash(i) a, hash(i + 1) b, hash(i + 2) c from range(2_000_000) t(i)"
    spill = tmp_path / "spill"
    strict = Database(tmp_path, memory_limit="48MB", threads=1)
    with pytest.raises(duckdb.OutOfMemoryException):
        strict.cursor().execute(rows)
    strict.close()
    spilling = Database(tmp_path, memory_limit="48MB", threads=1, spill=spill)
    cursor = spilling.cursor()
    cursor.execute(rows)
    assert any(spill.iterdir())
    assert cursor.execute("select count(*), sum(i) from much").fetchone() == (2_000_000, 1_999_999_000_000)
    cursor.close()
    spilling.close()


def test_memory_that_is_short_at_a_commit_is_no_damage(tmp_path: Path) -> None:
    """Goal: a good file is not called unreadable. Method: DuckDB's own words for a commit without memory."""
    error = duckdb.TransactionException(
        "TransactionContext Error: Failed to commit: could not allocate block of size 256.0 KiB (488.1 MiB/488.2 MiB)"
    )
    told = fault(tmp_path / "runs-1.duckdb", error)
    assert not isinstance(told, UnreadableFile)
    assert "ESPER_REBUILD_MEMORY_LIMIT" in told.next_step
