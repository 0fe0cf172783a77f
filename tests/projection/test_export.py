"""Tests of snapshots for other tools, beside a running projector and from plain files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from esper.core.errors import NotReadyError, UsageError
from esper.projection import catch_up, export, query, replay, resolve_as_of, verify
from tests.conftest import RunningBroker
from tests.projection.log import finish, one_run
from tests.projection.system import System, own_system


@pytest.fixture(scope="module")
def system(broker: RunningBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system with one finished run, folded."""
    with own_system(broker, tmp_path_factory.mktemp("export")) as made:
        one_run(made, "run-a")
        finish(made, "run-a")
        catch_up(made.fabric)
        yield made


@pytest.mark.parametrize("beside", [True, False], ids=["beside a projector", "from files"])
def test_a_snapshot_is_what_a_query_sees(system: System, tmp_path: Path, beside: bool) -> None:
    """Goal: a snapshot is one past state, whole. Method: both forms, read by plain readers; no leftovers."""
    point = resolve_as_of("now", name="runs", settings=system.settings).offsets
    one_run(system, f"run-later-{beside}")
    with system.projector() if beside else nullcontext():
        catch_up(system.fabric)
        in_file = export("runs", tmp_path / "runs.duckdb", as_of=point, settings=system.settings)
        in_folder = export("runs", tmp_path / "runs", as_of=point, settings=system.settings)
        expected = query("from epochs order by all", as_of=point, settings=system.settings)
        with pytest.raises(UsageError, match="is there already"):
            export("runs", tmp_path / "runs", settings=system.settings)
        live = {one["table"]: one for one in verify(system.fabric, ["runs"])["projections"][0]["tables"]}
        now = export("runs", tmp_path / "now.db", settings=system.settings)
        replay(system.fabric, ["runs"])
        # Offsets mean the same in a file that was built anew beside the old one.
        assert query("from epochs order by all", as_of=point, settings=system.settings).equals(expected)
    assert in_file["offsets"] == in_folder["offsets"] == point
    assert {one["name"]: (one["rows"], one["hash"]) for one in in_file["tables"]} == {
        one["name"]: (one["rows"], one["hash"]) for one in in_folder["tables"]
    }
    tables = [one for one in now["tables"] if one["kind"] == "table"]
    assert {one["name"]: (one["rows"], one["hash"]) for one in tables} == {
        name: (one["rows"], one["live"]) for name, one in live.items() if not name.startswith("esper.")
    }
    with duckdb.connect(str(tmp_path / "runs.duckdb"), read_only=True) as plain:
        plain.execute("set TimeZone = 'UTC'")
        assert plain.sql("from epochs order by all").to_arrow_table().to_pylist() == expected.to_pylist()
        assert plain.sql("select offsets from esper.meta").fetchall() == [(point,)]
        assert len(plain.sql("from esper.manifest").fetchall()) == len(in_file["tables"])
    assert json.loads((tmp_path / "runs" / "manifest.json").read_text()) == in_folder
    for one in in_folder["tables"]:
        path = tmp_path / "runs" / one["file"]
        assert pq.read_metadata(path).num_rows == one["rows"]
        assert sha256(path.read_bytes()).hexdigest() == one["sha256"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["now.db", "runs", "runs.duckdb"]
    assert list(system.fabric.home.projections.glob("building-*")) == []


def test_nothing_is_made_where_nothing_can_be(system: System, tmp_path: Path) -> None:
    """Goal: a refused snapshot leaves nothing. Method: a wrong name, a missing folder, offsets beyond the fold."""
    with pytest.raises(UsageError, match="no projection 'nope'"):
        export("nope", tmp_path / "x.duckdb", settings=system.settings)
    with pytest.raises(UsageError, match="is no folder"):
        export("runs", tmp_path / "missing" / "x.duckdb", settings=system.settings)
    point = resolve_as_of("now", name="field_reports", settings=system.settings).offsets
    beyond = ",".join(f"{pair.partition('=')[0]}=999999" for pair in point.split(","))
    with pytest.raises(NotReadyError, match="do not reach"):
        export("field_reports", tmp_path / "x.duckdb", as_of=beyond, settings=system.settings)
    assert list(tmp_path.iterdir()) == []
    assert list(system.fabric.home.projections.glob("building-*")) == []
