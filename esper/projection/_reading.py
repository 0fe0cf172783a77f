"""Runs one query under a deadline, in a read-only transaction, and brings its result out as Arrow."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import duckdb
import pyarrow as pa

from esper.core.clock import Deadline
from esper.core.errors import EsperError, OperationFailed, UsageError
from esper.projection._database import Database
from esper.projection._safety import check_query

#: Rows taken from DuckDB at a time; a batch is what a result may exceed its bound by.
_BATCH_ROWS: Final = 8_192
#: A result that needs more belongs into an aggregate or a LIMIT, not through a pipe.
RESULT_BYTES_MAX: Final = 256 * 1024 * 1024
#: An interrupt that comes between two statements is forgotten, so that it is repeated until it is heard.
_INTERRUPT_EVERY_SECONDS: Final = 0.05


@dataclass
class Interrupts:
    """The queries that run now, so that others can end them."""

    _running: dict[int, tuple[duckdb.DuckDBPyConnection, threading.Event]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def watch(self, cursor: duckdb.DuckDBPyConnection, deadline: Deadline) -> Iterator[threading.Event]:
        """Interrupt `cursor` from the deadline on, or once the event is set; the event tells that it happened."""
        ended, expelled = threading.Event(), threading.Event()

        def guard() -> None:
            while not ended.wait(_INTERRUPT_EVERY_SECONDS):
                if deadline.expired or expelled.is_set():
                    expelled.set()
                    cursor.interrupt()

        thread = threading.Thread(target=guard, name="query-deadline", daemon=True)
        with self._lock:
            self._running[id(cursor)] = (cursor, expelled)
        thread.start()
        try:
            yield expelled
        finally:
            ended.set()
            thread.join()
            with self._lock:
                del self._running[id(cursor)]

    def expel_all(self) -> int:
        """End every running query, so that its memory is freed; return how many there were."""
        with self._lock:
            for _, expelled in self._running.values():
                expelled.set()
            return len(self._running)


def run_query(
    database: Database,
    sql: str,
    parameters: Sequence[object] = (),
    *,
    seconds: float,
    interrupts: Interrupts | None = None,
    bytes_max: int = RESULT_BYTES_MAX,
) -> pa.Table:
    """Return what one reading statement gives.

    `parameters` fill `?` or `$1`, `$2`, ... in their order. The query sees one consistent state.

    Raises:
        UsageError: the statement is refused, or DuckDB finds an error in it.
        OperationFailed: it ran longer than `seconds`, needed more memory than there is, or gave too much.
    """
    cursor = database.cursor()
    deadline = Deadline(seconds)
    try:
        statement = check_query(cursor, sql)
        with (interrupts or Interrupts()).watch(cursor, deadline) as expelled:
            try:
                return _read(cursor, statement, parameters, bytes_max)
            # A result that breaks off while Arrow reads it raises OSError with DuckDB's text.
            except (duckdb.Error, OSError, pa.ArrowException) as error:
                raise _explain(error, deadline=deadline, seconds=seconds, expelled=expelled.is_set()) from error
    finally:
        cursor.close()


def _read(
    cursor: duckdb.DuckDBPyConnection, statement: duckdb.Statement, parameters: Sequence[object], bytes_max: int
) -> pa.Table:
    cursor.execute("begin transaction read only")
    relation = cursor.sql(statement, params=list(parameters) or None)
    if relation is None:
        raise UsageError("this query cannot be run", cause="it gives no result", next_step="Write one SELECT")
    reader = relation.to_arrow_reader(_BATCH_ROWS)
    batches, size = [], 0
    for batch in reader:
        batches.append(batch)
        size += batch.nbytes
        if size > bytes_max:
            raise OperationFailed(
                "the query's result is too large",
                cause=f"it has more than {bytes_max // 1024**2} MiB",
                next_step="Aggregate, select fewer columns or add a LIMIT",
            )
    return pa.Table.from_batches(batches, schema=reader.schema)


def _explain(error: Exception, *, deadline: Deadline, seconds: float, expelled: bool) -> EsperError:
    text = " ".join(str(error).split())
    if expelled and deadline.expired:
        return OperationFailed(
            f"the query ran longer than {seconds:g} seconds",
            cause="it was interrupted",
            next_step="Narrow it, or set ESPER_SQL_TIMEOUT_SECONDS higher",
        )
    if expelled or "Out of Memory" in text:
        return OperationFailed(
            "the query needs more memory than the database may use",
            cause="it was ended so that others can go on" if expelled else text,
            next_step="Narrow it, or set ESPER_SQL_MEMORY_LIMIT higher",
        )
    if isinstance(error, duckdb.ProgrammingError | duckdb.DataError | duckdb.NotSupportedError):
        return UsageError("the query cannot be run", cause=text, next_step="`show tables` lists what there is")
    return OperationFailed("the query failed", cause=text, next_step="`esper projections verify` checks the files")
