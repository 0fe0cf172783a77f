"""What a projection file holds, read in one snapshot: its offsets, and the hash of every table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import duckdb
import pyarrow as pa

from esper.projection._canonical import TableHash
from esper.projection._database import Database, quoted
from esper.projection._definition import Definition
from esper.projection._ledger import Progress

#: Not a table: the text of every table and view, so that a changed view shows too.
DEFINITIONS: Final = "esper.definitions"
_ENGINE_TABLES: Final = ("esper.progress", "esper.records")
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
        tables = {table: _table_content(cursor, f"from {table}") for table in _ENGINE_TABLES}
        tables |= {table: _table_content(cursor, f"from main.{quoted(table)}") for table in definition.table_names}
        tables[DEFINITIONS] = _table_content(
            cursor,
            "select schema_name, table_name as name, sql from duckdb_tables() where database_name = current_database()"
            " union all"
            " select schema_name, view_name, sql from duckdb_views()"
            " where database_name = current_database() and not internal",
        )
        return Contents(definition.name, definition.version, progress, tables)
    finally:
        cursor.close()


def _table_content(cursor: duckdb.DuckDBPyConnection, select: str) -> TableContent:
    total = TableHash()
    try:
        for batch in cursor.sql(select).to_arrow_reader(_BATCH_ROWS):
            total = total.add(batch.to_pylist())
    # Arrow wraps what DuckDB finds while it reads; a damaged block is a finding here, not a failure.
    except (duckdb.Error, OSError, pa.ArrowException):
        cursor.execute("rollback")
        cursor.execute("begin transaction read only")
        return TableContent(None, _UNREADABLE)
    return TableContent(total.rows, total.text)
