"""Tests of queries: what is refused, what is answered, and that a runaway query harms nobody else."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from esper.core.clock import Deadline
from esper.core.errors import OperationFailed, SettingsError, UsageError
from esper.projection.sql._database import Database, UnreadableFile, fault
from esper.projection.sql._reading import Interrupts, Room, run_query
from tests.projection.hostile_sql import REFUSED, WRITING_CTE

_ENDLESS = "select count(*) from range(10000000) a, range(10000000) b where a.range + b.range = 7"
_HUNGRY = "select list(lpad(range::varchar, 100, 'x') order by range desc) from range(100000000)"

#: Endless rows without bytes; a process of its own, because threads of other tests compute in this one.
_STOPS_A_QUERY = """
import pathlib, sys, tempfile, time
from esper.core.errors import OperationFailed
from esper.projection.sql._database import Database
from esper.projection.sql._reading import run_query

with tempfile.TemporaryDirectory() as folder:
    database = Database(pathlib.Path(folder), memory_limit="200MB")
    try:
        run_query(database, "select null from range(1000000000000)", seconds=30, rows_max=100_000)
    except OperationFailed as stopped:
        assert "too large" in str(stopped), stopped
    else:
        sys.exit("the query was not stopped")
    patience = time.monotonic() + 30
    while True:  # ends with half a second of rest, or at the deadline
        before = time.process_time()
        time.sleep(0.5)
        if time.process_time() - before < 0.1:
            break
        if time.monotonic() > patience:
            sys.exit("something still computes")
    database.close()
"""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A locked-down database with one attached file that holds a table."""
    folder = tmp_path_factory.mktemp("projections")
    (folder / "notes.csv").write_text("a,b\n1,2\n")
    opened = Database(folder, memory_limit="200MB")
    opened.attach(folder / "runs.duckdb", "runs")
    cursor = opened.cursor()
    cursor.execute("create table runs.main.facts as select range as n, range::varchar as word from range(10)")
    cursor.execute("create sequence runs.main.counter")
    opened.expose("runs", ["facts"])
    cursor.close()
    yield opened
    opened.close()


def _rows(database: Database) -> int:
    return int(run_query(database, "select count(*) as n from facts", seconds=5).column("n")[0].as_py())


@pytest.mark.parametrize("sql", REFUSED, ids=lambda sql: sql[:60])
def test_what_is_no_reading_query_is_refused(database: Database, sql: str) -> None:
    """Only one SELECT without side effects passes: each way known to write, to leave or to ask twice is refused."""
    before = _rows(database)
    with pytest.raises(UsageError):
        run_query(database, sql, seconds=5)
    assert _rows(database) == before


def test_the_transaction_alone_would_stop_a_write(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fences are independent: with the checks on the parser's tree off, a writing CTE still changes nothing."""
    monkeypatch.setattr("esper.projection.sql._safety._check_tree", lambda tree: None)
    before = _rows(database)
    with pytest.raises(OperationFailed, match="read-only mode"):
        run_query(database, WRITING_CTE, seconds=5)
    assert _rows(database) == before


def test_the_database_alone_would_keep_files_away(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the checks off the database itself refuses files outside its folder and every setting."""
    monkeypatch.setattr("esper.projection.sql._safety._check_tree", lambda tree: None)
    with pytest.raises((OperationFailed, UsageError)):
        run_query(database, "select * from read_text('/etc/passwd')", seconds=5)
    cursor = database.cursor()
    for sql in ("set memory_limit = '1TB'", "attach '/tmp/elsewhere.duckdb' as elsewhere", "load httpfs"):
        with pytest.raises(duckdb.Error):
            cursor.execute(sql)
    cursor.close()


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("select max(n) as n from facts", [{"n": 9}]),
        ("from facts select count(*) as n where n > 5", [{"n": 4}]),
        (
            "with recursive t as (select 1 n union all select n + 1 from t where n < 3) select max(n) n from t",
            [{"n": 3}],
        ),
        ("select n from facts union all select n from runs.facts order by n limit 1", [{"n": 0}]),
        ("select unnest([1, 2]) as n", [{"n": 1}, {"n": 2}]),
        ("select sum(range)::integer as n from range(4)", [{"n": 6}]),
        ("select n, row_number() over (order by n desc) as r from facts qualify r = 1", [{"n": 9, "r": 1}]),
        ("select n from facts where word = ? and n < ?", []),
        ("select extract(year from timestamptz '2026-01-01 00:00:00+00')::integer as n", [{"n": 2026}]),
        ("(select 1 as n);", [{"n": 1}]),
        ("/* why */ select 1 as n -- because", [{"n": 1}]),
        ("values (1)", [{"col0": 1}]),
    ],
)
def test_reading_queries_are_answered(database: Database, sql: str, expected: list[dict[str, object]]) -> None:
    """SQL that reads works in its many forms: compare the rows."""
    parameters = ["nope", 3] if "?" in sql else []
    assert run_query(database, sql, parameters, seconds=5).to_pylist() == expected


@pytest.mark.parametrize(
    "sql",
    ["show tables", "describe facts", "summarize facts", "explain select 1", "EXPLAIN ANALYZE\nselect * from facts"],
)
def test_looking_around_is_allowed(database: Database, sql: str) -> None:
    """What a person types first gives rows: names, columns, statistics and plans."""
    assert run_query(database, sql, seconds=5).num_rows > 0


def test_an_endless_query_ends_at_its_deadline(database: Database) -> None:
    """A runaway query is interrupted in time, wherever it spends it: in planning, computing and handing out rows."""
    endless = [_ENDLESS, "select a.range from range(100000000) a, range(100000000) b where a.range % 1000003 = 0"]
    for sql in [*endless, f"explain analyze {_ENDLESS}"]:
        patience = Deadline(10)
        with pytest.raises(OperationFailed, match=r"longer than 0\.3 seconds") as caught:
            run_query(database, sql, seconds=0.3)
        assert not patience.expired
        assert "ESPER_SQL_TIMEOUT_SECONDS" in caught.value.next_step
    assert _rows(database) == 10


def test_a_hungry_query_fails_alone(database: Database) -> None:
    """Memory is bounded for all queries together: one that wants too much fails, the next one works."""
    with pytest.raises(OperationFailed, match="more memory") as caught:
        run_query(database, _HUNGRY, seconds=60)
    assert "ESPER_SQL_MEMORY_LIMIT" in caught.value.next_step
    assert _rows(database) == 10


def test_a_large_result_is_cut_off(database: Database) -> None:
    """What comes out is bounded too: ask for more bytes than allowed."""
    with pytest.raises(OperationFailed, match="too large"):
        run_query(database, "select lpad('', 100, 'x') from range(1000000)", seconds=30, bytes_max=1_000_000)


def test_what_is_cut_off_does_not_go_on_in_secret() -> None:
    """Goal: a stopped query costs nothing more. Method: a process that stops one, and reads, comes to rest."""
    ended = subprocess.run([sys.executable, "-c", _STOPS_A_QUERY], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


def test_results_share_one_room(database: Database) -> None:
    """Goal: many results together are bounded too. Method: two that fit alone, together and one by one."""
    room, sql = Room(bytes_max=1_000_000), "select range as n from range(100000)"
    first = run_query(database, sql, seconds=30, room=room)
    with pytest.raises(OperationFailed, match="too large for now"):
        run_query(database, sql, seconds=30, room=room)
    del first
    assert run_query(database, sql, seconds=30, room=room).num_rows == 100_000


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("select lpad('7', 3, '0') as n", "007"),
        ("select printf('%05.2f', 3.14159) as n", "03.14"),
        ("select format('{:>5}|{}', 'a', 'b') as n", "    a|b"),
        ("select len(range(5))::varchar as n", "5"),
        ("select sum(range)::varchar as n from range(2000)", "1999000"),
    ],
)
def test_small_values_are_made(database: Database, sql: str, expected: str) -> None:
    """Goal: the fence bounds sizes, it takes no function away that people need. Method: each within its bound."""
    assert run_query(database, sql, seconds=5).to_pylist() == [{"n": expected}]


def test_queries_give_way_when_asked(database: Database) -> None:
    """Whoever needs memory more can end all queries: start one in a thread, expel it, see its reason."""
    interrupts, failures = Interrupts(), []

    def ask() -> None:
        with pytest.raises(OperationFailed) as caught:
            run_query(database, _ENDLESS, seconds=60, interrupts=interrupts)
        failures.append(caught.value)

    thread = threading.Thread(target=ask)
    thread.start()
    deadline = Deadline(20)
    while interrupts.expel_all() == 0:
        assert not deadline.expired
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert "so that others can go on" in failures[0].cause


def test_a_memory_limit_that_means_nothing_is_refused(tmp_path: Path) -> None:
    """A bad setting is named with its variable: open a database with nonsense for its limit."""
    with pytest.raises(SettingsError, match="ESPER_SQL_MEMORY_LIMIT=lots"):
        Database(tmp_path, memory_limit="lots")


def test_a_fault_of_the_database_is_no_damage_of_a_file(tmp_path: Path) -> None:
    """Goal: no good file is set aside for it. Method: what DuckDB says after an internal fault, and of a bad block."""
    text = "FATAL Error: Failed: database has been invalidated because of a previous fatal error. Original error: x"
    assert isinstance(fault(tmp_path, duckdb.FatalException(text)), OperationFailed)
    assert isinstance(fault(tmp_path, duckdb.FatalException("computed checksum does not match")), UnreadableFile)
