"""Snapshots of a projection for other tools: a plain DuckDB file, or a folder of Parquet files.

The process that holds the projection's file copies the state into a file of its own folder, in one transaction while
the fold goes on; everything else (hashes, Parquet, the manifest) is made of that copy by the process that asked.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from esper.core.clock import Deadline
from esper.core.errors import OperationFailed, UsageError
from esper.core.ids import new_event_id
from esper.oona import Position
from esper.projection.definitions._definition import Definition
from esper.projection.definitions._folder import remove
from esper.projection.files._canonical import TableHash
from esper.projection.files._rowhash import row_digests
from esper.projection.points._asof import offsets_text
from esper.projection.points._asof_views import PastState
from esper.projection.points._resolve import ENGINE_SCHEMA
from esper.projection.sql._database import Database, fault, quoted, transaction
from esper.projection.sql._reading import Interrupts

EXPORT_SECONDS: Final = 600.0
MANIFEST: Final = "manifest.json"
_BATCH_ROWS: Final = 65_536
_DATABASE_SUFFIXES: Final = frozenset({".db", ".duckdb"})


@dataclass(frozen=True)
class Exported:
    """One table or view of a snapshot.

    `hash` is the table's hash as `esper projections verify` computes it, null for a view; `file` and `sha256` are null
    in a DuckDB file.
    """

    name: str
    kind: str
    rows: int
    hash: str | None = None
    file: str | None = None
    sha256: str | None = None


def write_export(
    database: Database,
    folder: Path,
    definition: Definition,
    offsets: Mapping[Position, int],
    *,
    past: PastState,
    interrupts: Interrupts,
) -> Path:
    """Copy a projection as of `offsets` into a new DuckDB file of `folder`, and return its path.

    It holds the tables and views, and `esper.meta` and `esper.progress`, and opens without Esper.

    Raises:
        OperationFailed: it took longer than `EXPORT_SECONDS`, needed too much memory, or the disk is full.
        NotReadyError: the projection is not folded up to the offsets.
    """
    # The name of a file that is being built: it is removed once the process that it belongs to is gone.
    path = folder / f"building-{os.getpid()}-export-{new_event_id()}.duckdb"
    alias = f"export-{new_event_id()}"
    database.attach(path, alias)
    cursor = database.cursor()
    deadline = Deadline(EXPORT_SECONDS)
    try:
        with interrupts.watch(cursor, deadline) as expelled:
            try:
                past.show(cursor)
                with transaction(cursor):
                    past.confirm(cursor)
                    _copy(cursor, definition, offsets, source=past.alias, target=alias)
            except duckdb.Error as error:
                raise _failed(path, error, expelled=expelled.is_set()) from error
    except BaseException:
        cursor.close()
        database.detach(alias)
        remove(path)
        raise
    finally:
        cursor.close()
        past.hide()
    database.detach(alias)
    return path


def _copy(
    cursor: duckdb.DuckDBPyConnection,
    definition: Definition,
    offsets: Mapping[Position, int],
    *,
    source: str,
    target: str,
) -> None:
    origin, copy = quoted(source), quoted(target)
    for table in definition.table_names:
        cursor.execute(f"create table {copy}.main.{quoted(table)} as from {origin}.main.{quoted(table)}")
    cursor.execute(f"use {copy}")
    for statement in definition.views:
        cursor.execute(statement)
    cursor.execute(f"create schema {ENGINE_SCHEMA}")
    cursor.execute(f"create table {ENGINE_SCHEMA}.progress as from {origin}.{ENGINE_SCHEMA}.progress")
    cursor.execute(f"create table {ENGINE_SCHEMA}.meta (projection varchar, version varchar, offsets varchar)")
    cursor.execute(
        f"insert into {ENGINE_SCHEMA}.meta values ($1, $2, $3)",  # noqa: S608 - a constant
        [definition.name, definition.version, offsets_text(offsets)],
    )


def _failed(path: Path, error: duckdb.Error, *, expelled: bool) -> Exception:
    if not expelled and not isinstance(error, duckdb.OutOfMemoryException):
        return fault(path, error)
    return OperationFailed(
        "the snapshot was not finished",
        cause="it was ended so that the fold can go on, or took too long" if expelled else " ".join(str(error).split()),
        next_step="Try again, or set ESPER_SQL_MEMORY_LIMIT higher",
    )


def check_target(target: Path) -> None:
    """Raise UsageError when a snapshot cannot be put at `target`: nothing is ever overwritten."""
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target} is there already", next_step="Name another file or folder, or remove it first")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"{target.absolute().parent} is no folder", next_step="Make it first")


def finish_export(copy: Path, target: Path) -> dict[str, Any]:
    """Turn the copy that `write_export` made into the snapshot at `target`, all of it or nothing; return its manifest.

    `{projection, version, offsets, tables: [{name, kind, rows, hash, file, sha256}]}`. A target that ends in .duckdb
    or .db becomes one DuckDB file, with the manifest's tables in `esper.manifest`; any other a folder of one Parquet
    file for each table and view, with the manifest in manifest.json.

    Raises:
        UsageError: something is at `target` by now.
        OperationFailed: it cannot be written.
    """
    temporary = target.absolute().with_name(f".{target.name}.{new_event_id()}")
    try:
        if target.suffix in _DATABASE_SUFFIXES:
            manifest = _finish_database(copy, temporary)
            _publish_file(temporary, target)
        else:
            temporary.mkdir()
            manifest = _finish_folder(copy, temporary)
            check_target(target)
            temporary.rename(target)
    except OSError as error:
        raise OperationFailed(f"{target} cannot be written", cause=str(error)) from error
    finally:
        remove(copy)
        shutil.rmtree(temporary, ignore_errors=True)
        if temporary.is_file():
            temporary.unlink()
    return manifest


def _publish_file(temporary: Path, target: Path) -> None:
    """Give a finished file its name unless another took it; file systems without links get the check alone."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        check_target(target)
    except OSError:
        check_target(target)
        temporary.rename(target)


def _finish_database(copy: Path, temporary: Path) -> dict[str, Any]:
    with _opened(copy) as connection:
        found = [_counted(connection, name, kind) for name, kind in _relations(connection)]
        connection.execute(
            f"create table {ENGINE_SCHEMA}.manifest (name varchar, kind varchar, rows bigint, hash varchar)"
        )
        connection.executemany(
            f"insert into {ENGINE_SCHEMA}.manifest values (?, ?, ?, ?)",  # noqa: S608 - a constant
            [[one.name, one.kind, one.rows, one.hash] for one in found],
        )
        manifest = _manifest(connection, found)
    shutil.move(copy, temporary)
    return manifest


def _finish_folder(copy: Path, folder: Path) -> dict[str, Any]:
    with _opened(copy) as connection:
        found = [_written(connection, name, kind, folder) for name, kind in _relations(connection)]
        manifest = _manifest(connection, found)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


@contextmanager
def _opened(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    connection = duckdb.connect(str(path))
    try:
        connection.execute("set TimeZone = 'UTC'")
        yield connection
    finally:
        connection.close()


def _relations(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    return connection.execute(
        "select table_name, 'table' from duckdb_tables() where schema_name = 'main'"
        " union all select view_name, 'view' from duckdb_views() where schema_name = 'main' and not internal"
        " order by all"
    ).fetchall()


def _batches(connection: duckdb.DuckDBPyConnection, name: str) -> pa.RecordBatchReader:
    return connection.sql(f"from main.{quoted(name)}").to_arrow_reader(_BATCH_ROWS)


def _counted(connection: duckdb.DuckDBPyConnection, name: str, kind: str) -> Exported:
    if kind == "view":
        ((rows,),) = connection.execute(f"select count(*) from main.{quoted(name)}").fetchall()  # noqa: S608 - a quoted name
        return Exported(name, kind, rows)
    total = TableHash()
    for batch in _batches(connection, name):
        total = total.add_digests(row_digests(batch))
    return Exported(name, kind, total.rows, total.text)


def _written(connection: duckdb.DuckDBPyConnection, name: str, kind: str, folder: Path) -> Exported:
    path = folder / f"{name}.parquet"
    reader = _batches(connection, name)
    total, rows = TableHash(), 0
    with pq.ParquetWriter(path, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
            rows += batch.num_rows
            if kind == "table":
                total = total.add_digests(row_digests(batch))
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    return Exported(name, kind, rows, total.text if kind == "table" else None, path.name, digest)


def _manifest(connection: duckdb.DuckDBPyConnection, found: list[Exported]) -> dict[str, Any]:
    found_meta = connection.execute(f"select projection, version, offsets from {ENGINE_SCHEMA}.meta").fetchall()  # noqa: S608 - a constant
    ((projection, version, offsets),) = found_meta
    return {
        "projection": projection,
        "version": version,
        "offsets": offsets,
        "tables": [asdict(one) for one in found],
    }
