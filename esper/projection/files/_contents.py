"""What a projection file holds, read in one snapshot: its offsets, and the hash of every table."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import duckdb
import pyarrow as pa

from esper.core.errors import UsageError
from esper.projection.definitions._definition import Definition
from esper.projection.files._canonical import TableHash
from esper.projection.files._rowhash import row_digests
from esper.projection.records._ledger import Progress
from esper.projection.sql._database import Database, quoted
from esper.projection.sql._viewtext import ordered

#: Not a table: the text of every table and view, so that a changed view shows too.
DEFINITIONS: Final = "esper.definitions"
PROGRESS: Final = "esper.progress"
_ENGINE_TABLES: Final = (PROGRESS, "esper.records")
#: Not tables, but read like some: DuckDB's own words for what a file defines.
_DEFINITIONS_SQL: Final = (
    "select schema_name, table_name as name, sql from duckdb_tables() where database_name = current_database()"
    " union all select schema_name, view_name, sql from duckdb_views()"
    " where database_name = current_database() and not internal"
)
#: What identifies a row: its place, or its name among the definitions; and the digest of all of it.
DIGESTS_SCHEMA: Final = pa.schema(
    [
        ("topic", pa.string()),
        ("topic_partition", pa.int64()),
        ("record_offset", pa.int64()),
        ("name", pa.string()),
        ("digest", pa.binary(32)),
    ]
)
_BATCH_ROWS: Final = 4_096
_UNREADABLE: Final = "unreadable"


@dataclass(frozen=True)
class TableContent:
    """Rows and hash of one table; no rows and the word "unreadable" where DuckDB cannot read it."""

    rows: int | None
    hash: str


@dataclass(frozen=True)
class Contents:
    """Everything in a projection file, as of its own offsets."""

    name: str
    version: str
    progress: tuple[Progress, ...]
    tables: Mapping[str, TableContent]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` takes them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Return what `as_dict` was made of."""
        return cls(
            name=document["name"],
            version=document["version"],
            progress=tuple(Progress(**one) for one in document["progress"]),
            tables={name: TableContent(**one) for name, one in document["tables"].items()},
        )


def open_cursor(database: Database, definition: Definition) -> duckdb.DuckDBPyConnection:
    """Return a cursor on the attached file of a projection: unqualified names mean that file's."""
    cursor = database.cursor()
    cursor.execute(f"use {quoted(definition.name)}")
    return cursor


def read_progress(cursor: duckdb.DuckDBPyConnection) -> tuple[Progress, ...]:
    """Return the progress in the file that is the cursor's default database."""
    rows = cursor.execute(
        "select topic, topic_partition, topic_id, first_offset, next_offset, read, applied, filtered, deduplicated,"
        " discarded from esper.progress order by topic, topic_partition"
    ).fetchall()
    return tuple(Progress(*row) for row in rows)


def read_contents(database: Database, definition: Definition) -> Contents:
    """Return what the attached file of `definition` holds; the fold may go on meanwhile.

    Raises:
        duckdb.Error: not even its offsets can be read.
    """
    cursor = open_cursor(database, definition)
    try:
        cursor.execute("begin transaction read only")
        progress = read_progress(cursor)
        tables = {table: _table_content(cursor, select) for table, select in _selects(definition).items()}
        return Contents(definition.name, definition.version, progress, tables)
    finally:
        cursor.close()


def read_digests(database: Database, definition: Definition, table: str) -> pa.Table:
    """Return place and digest of every row of a table (`DIGESTS_SCHEMA`).

    The schema's metadata hold the `progress` of the same snapshot as JSON: a list of what `Progress` holds.

    Raises:
        UsageError: there is no such table.
        duckdb.Error: it cannot be read.
    """
    selects = _selects(definition)
    if table not in selects:
        raise UsageError(f"projection {definition.name} has no table {table}")
    cursor = open_cursor(database, definition)
    try:
        cursor.execute("begin transaction read only")
        progress = json.dumps([asdict(one) for one in read_progress(cursor)])
        keys = ("name",) if table == DEFINITIONS else ("topic", "topic_partition", "record_offset")
        batches = [_digest_columns(batch, keys) for batch in _batches(cursor, selects[table])]
        return pa.Table.from_batches(batches, schema=DIGESTS_SCHEMA.with_metadata({"progress": progress}))
    finally:
        cursor.close()


def _selects(definition: Definition) -> dict[str, str]:
    """Return how to read everything that is compared, by name."""
    facts = {table: f"from main.{quoted(table)}" for table in definition.table_names}
    return {table: f"from {table}" for table in _ENGINE_TABLES} | facts | {DEFINITIONS: _DEFINITIONS_SQL}


def _batches(cursor: duckdb.DuckDBPyConnection, select: str) -> Iterator[pa.RecordBatch]:
    reader = cursor.sql(select).to_arrow_reader(_BATCH_ROWS)
    if select != _DEFINITIONS_SQL:
        yield from reader
        return
    for batch in reader:
        texts = [ordered(text) for text in batch.column("sql").to_pylist()]
        yield batch.set_column(batch.schema.get_field_index("sql"), "sql", pa.array(texts, pa.string()))


def _digest_columns(batch: pa.RecordBatch, keys: Collection[str]) -> pa.RecordBatch:
    def column(name: str, kind: pa.DataType) -> pa.Array:
        known = name in keys and name in batch.schema.names
        return batch.column(name).cast(kind) if known else pa.nulls(batch.num_rows, kind)

    *places, digest = DIGESTS_SCHEMA
    arrays = [column(field.name, field.type) for field in places]
    return pa.RecordBatch.from_arrays([*arrays, pa.array(row_digests(batch), digest.type)], schema=DIGESTS_SCHEMA)


def _table_content(cursor: duckdb.DuckDBPyConnection, select: str) -> TableContent:
    total = TableHash()
    try:
        for batch in _batches(cursor, select):
            total = total.add_digests(row_digests(batch))
    # Arrow wraps what DuckDB finds while it reads; a damaged block is a finding here, not a failure.
    except (duckdb.Error, OSError, pa.ArrowException):
        cursor.execute("rollback")
        cursor.execute("begin transaction read only")
        return TableContent(None, _UNREADABLE)
    return TableContent(total.rows, total.text)
