"""`esper sql` and `esper projections export` as people type them: forms, files, points in the past, and docs/sql.md."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from esper.projection import catch_up
from tests.conftest import RunningBroker
from tests.integration.driver import REPOSITORY, Answer, Esper
from tests.projection.log import finish, one_run
from tests.projection.system import System, own_system


@dataclass
class Shell:
    """The command line at a system of its own."""

    system: System
    esper: Esper

    def __call__(self, *words: str) -> Answer:
        """Run a command."""
        return self.esper(*words)


@pytest.fixture(scope="module")
def shell(broker: RunningBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Two runs, folded; no projector runs."""
    with own_system(broker, tmp_path_factory.mktemp("sql")) as system:
        for name in ("run-a", "run-b"):
            one_run(system, name)
            finish(system, name)
        catch_up(system.fabric)
        settings = system.settings
        assert settings.leyline_secret is not None
        environment = {
            "ESPER_KAFKA_BOOTSTRAP": str(settings.kafka_bootstrap),
            "ESPER_LEYLINE_SECRET": settings.leyline_secret.get_secret_value(),
            "ESPER_TOPICS_DIR": str(settings.topics_dir),
            "ESPER_PROJECTIONS_DIR": str(settings.projections_dir),
        }
        yield Shell(system, Esper(settings.home, environment))


_SELECT = (
    "select run_id, epoch, reward, reward_parts, issued_at, terminated, null as nothing"
    " from field_reports where run_id in ('run-a', 'run-b') order by run_id"
)


def test_every_form_says_the_same(shell: Shell, tmp_path: Path) -> None:
    """Goal: forms differ, rows do not. Method: the same query in each, read back by other readers; file and stdout."""
    rows = shell("sql", _SELECT, "--json").json
    assert [row["run_id"] for row in rows] == ["run-a", "run-b"]
    assert rows[0]["reward_parts"] == {"validation_gain": 0.5, "parameter_rent": -0.25}
    assert shell("sql", _SELECT, "--format", "json").json == rows
    assert shell("sql", _SELECT, "--format", "jsonl").lines == rows
    cells = list(csv.DictReader(io.StringIO(shell("sql", _SELECT, "--format", "csv").stdout)))
    assert [cell["run_id"] for cell in cells] == ["run-a", "run-b"]
    assert json.loads(cells[0]["reward_parts"]) == rows[0]["reward_parts"]
    assert (cells[0]["epoch"], cells[0]["reward"]) == (str(rows[0]["epoch"]), str(rows[0]["reward"]))
    assert (cells[0]["terminated"], cells[0]["nothing"]) == ("false", "")
    for suffix in ("json", "jsonl", "csv", "parquet"):
        written = shell("sql", _SELECT, "--output", str(tmp_path / f"rows.{suffix}"))
        assert written.code == 0, written.stderr
        assert written.stdout == ""
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.column("run_id").to_pylist() == ["run-a", "run-b"]
    assert pa.types.is_timestamp(table.schema.field("issued_at").type)
    assert "run-a" in shell("sql", _SELECT).stdout
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_sums_of_integers_are_numbers(shell: Shell) -> None:
    """DuckDB sums integers as decimals: in JSON they are numbers all the same, whatever their size."""
    (row,) = shell("sql", "select sum(i) as small, sum(i * 2**60::hugeint) as large from range(5) t(i)", "--json").json
    assert row == {"small": 10, "large": 10 * 2**60}


def test_offsets_that_say_too_little_are_told_in_short(shell: Shell) -> None:
    """Of offsets for other partitions: those first that the query knows nothing of, and ranges instead of lists."""
    answer = shell("sql", "select count(*) from runs", "--as-of", "bogus:3=1")
    assert answer.code == 2
    assert "it does not depend on bogus:3" in answer.stderr
    assert re.search(r"depends also on [^,]*:0-7, ", answer.stderr)


def test_parameters_are_values_not_text(shell: Shell) -> None:
    """Goal: `--param` keeps its types. Method: numbers, text, null, text that looks like a number."""
    select = "select typeof($1) as a, typeof($2) as b, $3 is null as c, $4 as d, $5 as e"
    words = ["--param", "7", "--param", "0.5", "--param", "null", "--param", '"7"', "--param", "run-a"]
    (row,) = shell("sql", select, *words, "--json").json
    assert (row["a"], row["b"], row["c"], row["d"], row["e"]) == ("INTEGER", "DOUBLE", True, "7", "run-a")
    found = shell(
        "sql", "select epoch from epochs where run_id = ? and epoch > ? order by 1", "--param", "run-a", "--param", "1"
    )
    assert [word for word in found.stdout.split() if word.isdecimal()] == ["2", "3"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["select 1 as n", "--json", "--format", "csv"], "contradict"),
        (["select 1 as n", "--output", "rows.xls"], "does not say its form"),
        (["select 1 as n", "--output", "rows.csv", "--format", "table"], "for the eye"),
        (["select 1 as n", "--timeout", "99999"], "ESPER_SQL_TIMEOUT_SECONDS"),
        (["select 1 as n", "--timeout", "0"], "ESPER_SQL_TIMEOUT_SECONDS"),
        (["select 1 as n", "--resolve-only"], "--as-of"),
        (["from runs", "--as-of", "2026-11-22"], "ambiguous"),
        (["from runs", "--as-of", "2999-01-01T00:00:00Z"], "future"),
        (["from runs", "--as-of", "no-such-event"], "no event"),
        (["from runs", "--as-of", "nothing:0=1"], "do not say enough"),
        (["select 1 as n, 2 as n"], "called n"),
    ],
)
def test_misuse_is_exit_code_2(shell: Shell, words: list[str], said: str) -> None:
    """Goal: every misuse says what it is. Method: one command each."""
    answer = shell("sql", *words)
    assert answer.code == 2
    assert said in answer.stderr
    assert answer.stdout == ""


def test_a_point_can_be_given_back(shell: Shell) -> None:
    """Goal: what is told on stderr is the point. Method: event id, then its offsets after more was appended."""
    (event,) = shell("sql", "select event_id from run_states where run_id = 'run-a' and epoch = 2", "--json").json
    count = "select count(*) as n, max(epoch) as epoch from epochs where run_id = 'run-a'"
    first = shell("sql", count, "--as-of", event["event_id"], "--json")
    assert first.json == [{"n": 2, "epoch": 2}]
    offsets = re.search(r"^as of (\S+)$", first.stderr, re.MULTILINE)
    assert offsets, first.stderr
    assert shell("sql", count, "--as-of", event["event_id"], "--resolve-only").stdout.strip() == offsets[1]
    one_run(shell.system, "run-later")
    catch_up(shell.system.fabric)
    again = shell("sql", count, "--as-of", offsets[1], "--json")
    assert again.json == first.json
    beyond = re.sub(r"=\d+", "=999999", offsets[1])
    answer = shell("sql", count, "--as-of", beyond)
    assert answer.code == 3
    assert "do not reach that point" in answer.stderr


def test_what_is_not_folded_is_said_and_can_be_had(shell: Shell) -> None:
    """Goal: nobody takes old rows for new ones. Method: append a run after the fold; ask as it is, then fresh."""
    one_run(shell.system, "run-late")
    late = "select count(*) as n from run_claims where run_id = 'run-late'"
    stale = shell("sql", late, "--json")
    assert stale.json == [{"n": 0}]
    assert "--fresh folds the rest" in stale.stderr
    fresh = shell("sql", late, "--fresh", "--json")
    assert fresh.json == [{"n": 1}]
    assert "note:" not in fresh.stderr


def test_without_a_broker_the_files_answer(shell: Shell) -> None:
    """Goal: the past needs no broker. Method: an address where none is; an early time, and a late one with its note."""
    environment = shell.esper.environment | {"ESPER_KAFKA_BOOTSTRAP": "127.0.0.1:1", "ESPER_CONNECT_SECONDS": "0.5"}
    away = Esper(shell.esper.home, environment)
    select = "select count(*) as n from run_claims"
    early = away("sql", "select count(*) as n from runs", "--as-of", "2020-01-01T00:00:00Z", "--json")
    assert early.json == [{"n": 0}]
    late = away("sql", select, "--as-of", "2020-01-01T00:00:00Z", "--json")
    assert late.json == [{"n": 0}]
    (last,) = away("sql", "select max(append_time) as t from esper.records", "--json").json
    shown = away("sql", select, "--as-of", last["t"].replace(" ", "T"), "--json")
    assert shown.json == away("sql", select, "--json").json
    assert "note: what the log holds beyond" in shown.stderr
    assert "note:" not in shell("sql", select, "--as-of", last["t"], "--json").stderr


def test_the_page_runs_as_it_stands(shell: Shell, tmp_path: Path) -> None:
    """Goal: docs/sql.md keeps its word. Method: run every shell block in order and the Python block as scripts."""
    page = (REPOSITORY / "docs" / "sql.md").read_text()
    commands = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (script,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(commands) == 3
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = shell.esper._environment() | {"PATH": path}
    shown = subprocess.run(
        ["bash", "-c", "\n".join(["set -euo pipefail", *commands])],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert shown.returncode == 0, shown.stderr
    assert pq.read_table(tmp_path / "runs.parquet").num_rows >= 2
    with duckdb.connect(str(tmp_path / "runs.duckdb"), read_only=True) as plain:
        row = plain.execute("select count(*) from runs").fetchone()
        assert row is not None
        assert row[0] >= 2
    manifest = json.loads((tmp_path / "reports" / "manifest.json").read_text())
    assert {table["name"] for table in manifest["tables"]} >= {"field_reports", "field_report_facts"}
    ran = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert ran.returncode == 0, ran.stderr
    assert "'reward'" in ran.stdout
