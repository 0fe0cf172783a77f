"""Tests of what a fold is handed: every column and field that its SQL may read, and nothing that it does not."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest

from esper.projection.columnar import pruned
from esper.projection.sql import _sqltree as sqltree

_INNER = pa.struct([("X", pa.int64()), ("y", pa.struct([("z", pa.string()), ("w", pa.int64())]))])
_ROWS = [
    {"a": 1, "s": {"X": 1, "y": {"z": "one", "w": 10}}, "l": [{"X": 2, "y": None}], "m": [("k", 1.0)]},
    {"a": None, "s": None, "l": None, "m": None},
    {"a": 3, "s": {"X": None, "y": None}, "l": [], "m": []},
]
_TABLE = pa.Table.from_pylist(
    _ROWS,
    schema=pa.schema(
        [("a", pa.int64()), ("s", _INNER), ("l", pa.list_(_INNER)), ("m", pa.map_(pa.string(), pa.float64()))]
    ),
)
#: SQL over `Message`, and names and types of what it must be handed.
_CASES = {
    "select a from Message": ["a: int64"],
    "select S.x from Message": ["s: struct<X: int64>"],
    "select Message.s.y.z, a from Message": ["a: int64", "s: struct<y: struct<z: string>>"],
    "select s.y.z, s.y from Message": ["s: struct<y: struct<z: string, w: int64>>"],
    "select m.s.x from Message as m": ["s: struct<X: int64>", "m: map<string, double>"],
    "select s['X'] from Message": [f"s: {_INNER}"],
    "select struct_extract(s, 'X') as x from Message": [f"s: {_INNER}"],
    "select list_transform(l, lambda one: one.y.z) as z from Message": [f"l: {pa.list_(_INNER)}"],
    "select e.y.z from Message, unnest(l) as seeds(e)": [f"l: {pa.list_(_INNER)}"],
    "select m['k'] as k from Message where a > 1": ["a: int64", "m: map<string, double>"],
    "select s.nothing_like_it is null as x from Message": None,
    "select 1 as one from Message": ["a: int64"],
    "select main.Message.s.x from Message": ["s: struct<X: int64>"],
    "select #2 as x, a from Message": None,
    "select z.x from Message as t(y, z)": None,
    "select * from Message": None,
    "select s.* from Message": None,
    "select Message from Message": None,
    "select columns('a') from Message": None,
}


@pytest.mark.parametrize("sql", _CASES)
def test_a_select_gets_what_it_reads(sql: str) -> None:
    """Each way to name a column or a field: what is handed over, and the same answer as from the whole table."""
    connection = duckdb.connect()
    table = pruned(_TABLE, sqltree.column_paths(sqltree.parse_select(connection.cursor(), sql)))
    expected = _CASES[sql]
    if expected is not None:
        assert [f"{field.name}: {field.type}" for field in table.schema] == expected
    connection.register("Message", _TABLE)
    try:
        whole = connection.execute(sql).fetchall()
    except duckdb.Error:
        return  # What the whole table does not answer nobody folds.
    finally:
        connection.unregister("Message")
    connection.register("Message", table)
    assert connection.execute(sql).fetchall() == whole


def test_no_paths_keep_everything() -> None:
    """Where it is not known what is read, all of it is handed over, as it is."""
    assert pruned(_TABLE, None) is _TABLE
    assert pruned(_TABLE, [("s",), ("s", "x"), ("a",)]).schema.field("s").type == _INNER


def test_a_part_of_a_table_is_pruned_like_the_whole() -> None:
    """Slices begin in the middle of their buffers: the rows are those of the slice."""
    part = pruned(_TABLE.slice(1), [("s", "y", "w"), ("a",)])
    assert part.to_pylist() == [{"a": None, "s": None}, {"a": 3, "s": {"y": None}}]
