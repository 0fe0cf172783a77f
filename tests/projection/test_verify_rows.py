"""Tests of `verify`: whatever is changed in a projection file by hand is found, and the rows are named."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from esper.core.errors import IntegrityError
from esper.core.rng import derive_seed
from esper.projection import canonical_row, catch_up, replay, verify
from esper.projection._verify import _verdict
from esper.projection.definitions._definition import Definition
from esper.projection.definitions._folder import ProjectionFolder
from esper.projection.files._contents import read_contents, read_digests
from esper.projection.files._differences import EXAMPLES, differing_rows
from esper.projection.files._rowhash import row_digests
from esper.projection.sql._database import Database
from esper.projection.sql._viewtext import ordered
from tests.campaigns import WHOLE
from tests.conftest import RunningBroker
from tests.projection.conftest import OpenWorkbench, Workbench
from tests.projection.log import TOPICS, Log, finish, one_epoch, one_run
from tests.projection.mutations import OPERATIONS, Mutation, mutate
from tests.projection.system import System, own_system, state

MUTATIONS = 1_000 if WHOLE else 50
ENGINE = ["esper.records", "esper.progress"]


def _several_runs() -> Log:
    log = Log()
    for number in range(3):
        one_run(log, f"run-{number}", seed=number)
        finish(log, f"run-{number}")
    again = log.source.records[3]
    log.append_raw(again)
    one_epoch(log, "run-0", 9, attempt=2)
    return log


def _filled(database: Database, definition: Definition) -> list[str]:
    contents = read_contents(database, definition)
    return [table for table in (*definition.table_names, *ENGINE) if contents.tables[table].rows]


@pytest.mark.campaign
@pytest.mark.timeout(1200)
def test_every_change_of_a_row_is_found(
    open_workbench: OpenWorkbench,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    """Goal: no change of a row in a projection file passes `verify`, and the rows that it names are those changed.

    Method: update, delete, insert and swap drawn from a seed, in every table, the ledger and the offsets, in columns of
    every type, each in a fresh copy of a sound file that is then compared with it.
    """
    seed = int(os.environ.get("CAMPAIGN_SEED") or request.config.getoption("randomly_seed", 0))
    chooser = random.Random(derive_seed(seed, "mutations"))  # noqa: S311 - a seeded campaign
    bench = open_workbench(_several_runs())
    bench.fold()
    chosen = [one for one in bench.definitions if one.name in ("runs", "field_reports")]
    tables = {one.name: _filled(bench.database, one) for one in chosen}
    for file in bench.files.values():
        file.close()
    bench.files.clear()
    kinds: Counter[str] = Counter()
    for number in range(MUTATIONS):
        definition = chooser.choice(chosen)
        mutation = _check_one(bench, definition, tables[definition.name], chooser, tmp_path / f"copy-{number}")
        kinds[mutation.operation] += 1
    record_property("seed", seed)
    record_property("mutations", MUTATIONS)
    for operation, count in kinds.items():
        record_property(operation, count)
    assert kinds.keys() == set(OPERATIONS), f"CAMPAIGN_SEED={seed}"


def _check_one(
    bench: Workbench, definition: Definition, tables: list[str], chooser: random.Random, folder: Path
) -> Mutation:
    """Change one copy, and see that the verdict names what was changed."""
    sound = bench.folder / f"{definition.name}.duckdb"
    folder.mkdir()
    copy = Path(shutil.copy(sound, folder))
    mutation = mutate(copy, tables, chooser)
    changed, replayed = Database(folder, memory_limit="200MB"), Database(bench.folder, memory_limit="200MB")
    try:
        changed.attach(copy, definition.name, read_only=True)
        replayed.attach(sound, definition.name, read_only=True)
        live = read_contents(changed, definition)
        verdict = _verdict(
            replayed, definition, live, lambda _, table: read_digests(changed, definition, table), TOPICS
        )
    finally:
        changed.close()
        replayed.close()
        shutil.rmtree(folder)
    assert not verdict["equal"], mutation
    assert [table["table"] for table in verdict["tables"] if not table["equal"]] == [mutation.table], mutation
    [found] = verdict["differences"]
    assert found["table"] == mutation.table
    _check_places(found, mutation)
    return mutation


def _check_places(found: dict[str, Any], mutation: Mutation) -> None:
    named = {(row["partition"], row["offset"]) for row in found["rows"]}
    if mutation.table == "esper.progress":
        assert named, mutation
        return
    if found["changed"] + found["missing"] + found["extra"] <= EXAMPLES:
        assert named == {(partition, offset) for _, partition, offset in mutation.places}, (mutation, found)
    if mutation.operation == "insert":
        # A second row at a place that has one.
        assert (found["extra"], found["changed"], found["missing"]) == (1, 0, 0), mutation
    if mutation.operation == "delete":
        assert (found["extra"], found["changed"], found["missing"]) == (0, 0, 1), mutation


def test_rows_that_came_later_are_no_difference(open_workbench: OpenWorkbench) -> None:
    """The live file goes on while rows are looked for: fold more after the offsets were taken, change an old row."""
    log = Log()
    one_run(log)
    old, live = open_workbench(log, "old"), open_workbench(log)
    old.fold()
    live.fold()
    until = live.contents("runs").progress
    definition = next(one for one in live.definitions if one.name == "runs")
    one_epoch(log, "run-a", 4)
    live.fold()
    replayed = read_digests(old.database, definition, "run_states")
    topic = "system-state"

    def found() -> dict[str, Any]:
        digests = read_digests(live.database, definition, "run_states")
        return differing_rows("run_states", digests, replayed, topic=topic, until=until)

    assert read_digests(live.database, definition, "run_states").num_rows == replayed.num_rows + 1
    assert found() == {"table": "run_states", "changed": 0, "missing": 0, "extra": 0, "rows": []}
    live.rows("update runs.run_states set val_loss = 7 where epoch = 2")
    [row] = found()["rows"]
    assert (row["kind"], row["topic"], row["offset"]) == ("changed", topic, 1)


def test_many_rows_are_hashed_as_one_by_one() -> None:
    """The fast way gives the bytes of the slow one: values of every type, nulls, nests, slices, 0.0 and -0.0, NaN."""
    sql = """
    select range as i, (range % 200)::utinyint as u, 'text ' || range % 7 as s, range % 2 = 0 as b,
      case range % 4 when 0 then 0.0 when 1 then '-0.0'::double when 2 then 'nan' end as f, (range / 3)::float as g,
      to_timestamp(range * 0.001) as t, timestamp '2020-02-02 02:02:02.02' as n, date '1969-01-01' as d,
      (range * 0.01)::decimal(9, 2) as c, encode('b' || range) as x, null as z, []::integer[] as e,
      case range % 3 when 0 then map {} when 1 then map {'b': [1.5, null], 'a': []} end as m,
      case when range % 5 > 0 then [{'k': 'v' || range, 'o': null::bigint}, null] end as l,
      {'in': {'deep': [[range], null]}, 'flag': null::boolean} as r
    from range(1000)
    """
    with duckdb.connect() as connection:
        table = connection.sql(sql).to_arrow_table().combine_chunks()
    for batch in (*table.to_batches(), table.slice(17, 300).to_batches()[0]):
        assert row_digests(batch) == [hashlib.sha256(canonical_row(row)).digest() for row in batch.to_pylist()]
    assert row_digests(pa.RecordBatch.from_pydict({"a": pa.array([], pa.int8())})) == []


def test_unordered_lists_of_a_view_compare_equal() -> None:
    """DuckDB writes a view's EXCLUDE and REPLACE lists in any order: texts that differ in nothing else are one."""
    one = "SELECT * EXCLUDE (note, ended_at) REPLACE ((a + f(b, ',)')) AS a, c AS d) FROM t WHERE x IN (2, 1)"
    other = "SELECT * EXCLUDE (ended_at, note) REPLACE (c AS d, (a + f(b, ',)')) AS a) FROM t WHERE x IN (2, 1)"
    assert ordered(one) == ordered(other)
    assert ordered(one.replace("note", "notes")) != ordered(one)
    assert ordered(one.replace("(2, 1)", "(1, 2)")) != ordered(one)


def _esper(system: System, *words: str) -> subprocess.CompletedProcess[str]:
    settings = system.settings
    assert settings.leyline_secret is not None
    environment = {
        **os.environ,
        "ESPER_HOME": str(settings.home),
        "ESPER_KAFKA_BOOTSTRAP": str(settings.kafka_bootstrap),
        "ESPER_LEYLINE_SECRET": settings.leyline_secret.get_secret_value(),
        "ESPER_TOPICS_DIR": str(settings.topics_dir),
        "ESPER_PROJECTIONS_DIR": str(settings.projections_dir),
    }
    command = [sys.executable, "-m", "esper.cli", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)


_CHANGES = {
    "run_states": "update run_states set val_loss = 'nan' where epoch = 2",
    "esper.records": "delete from esper.records where record_offset = 0",
    "esper.progress": "update esper.progress set read = read + 1 where read > 0",
}


def test_the_command_names_what_was_changed(broker: RunningBroker, tmp_path: Path) -> None:
    """Through the real command line: exit code 0 and no differences, then 4 with table and offset; then healed."""
    with own_system(broker, tmp_path) as system:
        one_run(system, "run-a")
        catch_up(system.fabric)
        sound = _esper(system, "projections", "verify", "runs", "--json")
        assert sound.returncode == 0, sound.stderr
        assert json.loads(sound.stdout)["projections"][0]["differences"] == []
        for sql in _CHANGES.values():
            _change(system, sql)
        found = _esper(system, "projections", "verify", "runs", "--json")
        assert found.returncode == 4, found.stderr
        [verdict] = json.loads(found.stdout)["projections"]
        assert {one["table"] for one in verdict["differences"]} == _CHANGES.keys()
        rows = [row for one in verdict["differences"] if one["table"] == "run_states" for row in one["rows"]]
        assert [(row["kind"], row["topic"], row["offset"]) for row in rows] == [
            ("changed", system.topic("system-state"), 1)
        ]
        rebuilt = _esper(system, "projections", "rebuild", "runs", "--json")
        assert rebuilt.returncode == 0, rebuilt.stderr
        assert json.loads(rebuilt.stdout).keys() >= {"version", "previous", "records", "switch_seconds", "positions"}
        assert verify(system.fabric)["equal"]
        back = _esper(system, "projections", "rollback", "runs")
        assert back.returncode == 0, back.stderr
        shown = _esper(system, "projections", "verify")
        assert shown.returncode == 4
        assert "DIFFERENT" in shown.stderr


def _change(system: System, sql: str) -> None:
    live = ProjectionFolder(system.fabric.home.projections).live("runs")
    assert live is not None
    with duckdb.connect(str(live.path)) as connection:
        connection.execute(sql)


def test_offsets_that_are_none_are_said_so(broker: RunningBroker, tmp_path: Path) -> None:
    """A null among the offsets leaves nothing to compare up to: that is an integrity error, and a rebuild heals it."""
    with own_system(broker, tmp_path) as system:
        system.publish(state("run-a", 1), key="run-a")
        catch_up(system.fabric)
        _change(system, "update esper.progress set next_offset = null where read > 0")
        with pytest.raises(IntegrityError, match="cannot be compared"):
            verify(system.fabric, ["runs"])
        replay(system.fabric, ["runs"])
        assert verify(system.fabric, ["runs"])["equal"]
