"""Runs one query under a deadline, in a read-only transaction, and brings its result out as Arrow."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

import duckdb
import pyarrow as pa

from esper.core.clock import Deadline
from esper.core.errors import EsperError, OperationFailed, UsageError
from esper.projection.sql._database import Database
from esper.projection.sql._safety import check_query

#: Rows taken from DuckDB at a time; a batch is what a result may exceed its bound by.
_BATCH_ROWS: Final = 8_192
#: A result that needs more belongs into an aggregate or a LIMIT, not through a pipe.
RESULT_BYTES_MAX: Final = 256 * 1024 * 1024
#: Rows may have no bytes: nulls without a type.
RESULT_ROWS_MAX: Final = 10_000_000
#: Results of several queries that are there at the same time.
ROOM_BYTES_MAX: Final = 2 * RESULT_BYTES_MAX
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


class Room:
    """Memory for results, shared by all queries of a process: a result gives its bytes back when nobody holds it."""

    def __init__(self, bytes_max: int = ROOM_BYTES_MAX) -> None:
        self._free = bytes_max
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Take bytes; raises OperationFailed when others have too many."""
        with self._lock:
            if size > self._free:
                raise OperationFailed(
                    "the query's result is too large for now",
                    cause="the results of other queries take the memory for it",
                    next_step="Try again in a moment, or aggregate, or add a LIMIT",
                )
            self._free -= size

    def give_back(self, size: int) -> None:
        """Let others have the bytes again."""
        with self._lock:
            self._free += size


@dataclass(frozen=True)
class Limits:
    """What one query may cost."""

    seconds: float
    bytes_max: int
    rows_max: int

    def check(self, rows: int, size: int) -> None:
        """Raise OperationFailed for a result of more rows or bytes."""
        if size > self.bytes_max or rows > self.rows_max:
            raise OperationFailed(
                "the query's result is too large",
                cause=f"it has more than {self.bytes_max // 1024**2} MiB or {self.rows_max:,} rows",
                next_step="Aggregate, select fewer columns, add a LIMIT, or use `esper projections export`",
            )


class Past(Protocol):
    """Lets the bare names of a checked query mean the state at a point in the past."""

    def check(self, tables: AbstractSet[tuple[str, ...]]) -> None:
        """Raise UsageError for names that it cannot answer."""

    def show(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Prepare the cursor, before its transaction."""

    def confirm(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Raise NotReadyError when that point is not there, within the transaction."""

    def hide(self) -> None:
        """Take back what `show` made; the cursor is closed."""


def run_query(
    database: Database,
    sql: str,
    parameters: Sequence[object] = (),
    *,
    seconds: float,
    bytes_max: int = RESULT_BYTES_MAX,
    rows_max: int = RESULT_ROWS_MAX,
    interrupts: Interrupts | None = None,
    room: Room | None = None,
    past: Past | None = None,
) -> pa.Table:
    """Return what one reading statement gives.

    `parameters` fill `?` or `$1`, `$2`, ... in their order. The query sees one consistent state.

    Raises:
        UsageError: the statement is refused, or DuckDB finds an error in it.
        OperationFailed: it ran longer than it may, needed more memory than there is, or gave too much.
        NotReadyError: the projections are not folded up to the point in the past.
    """
    cursor = database.cursor()
    limits, deadline = Limits(seconds, bytes_max, rows_max), Deadline(seconds)
    try:
        checked = check_query(cursor, sql)
        with (interrupts or Interrupts()).watch(cursor, deadline) as expelled:
            try:
                if past is not None:
                    past.check(checked.tables)
                    past.show(cursor)
                cursor.execute("begin transaction read only")
                if past is not None:
                    past.confirm(cursor)
                return _read(cursor, checked.statement, parameters, limits, room or Room(), expelled)
            # A result that breaks off while Arrow reads it raises OSError with DuckDB's text.
            except (duckdb.Error, OSError, pa.ArrowException) as error:
                raise _explain(error, deadline=deadline, limits=limits, expelled=expelled.is_set()) from error
    finally:
        cursor.close()
        if past is not None:
            past.hide()


def _read(
    cursor: duckdb.DuckDBPyConnection,
    statement: duckdb.Statement,
    parameters: Sequence[object],
    limits: Limits,
    room: Room,
    expelled: threading.Event,
) -> pa.Table:
    relation = cursor.sql(statement, params=list(parameters) or None)
    if relation is None:
        raise UsageError("this query cannot be run", cause="it gives no result", next_step="Write one SELECT")
    reader = relation.to_arrow_reader(_BATCH_ROWS)
    batches: list[pa.RecordBatch] = []
    rows = taken = 0
    try:
        for batch in reader:
            room.take(batch.nbytes)
            batches.append(batch)
            rows, taken = rows + batch.num_rows, taken + batch.nbytes
            limits.check(rows, taken)
    except BaseException as error:
        room.give_back(taken)
        if isinstance(error, EsperError):
            # DuckDB goes on computing what nobody takes any more, without a bound where rows have no bytes, until it
            # is interrupted; to close the reader is to wait for that.
            expelled.set()
            reader.close()
        raise
    table = pa.Table.from_batches(batches, schema=reader.schema)
    weakref.finalize(table, room.give_back, taken)
    return table


def _explain(error: Exception, *, deadline: Deadline, limits: Limits, expelled: bool) -> EsperError:
    text = " ".join(str(error).split())
    if expelled and deadline.expired:
        return OperationFailed(
            f"the query ran longer than {limits.seconds:g} seconds",
            cause="it was interrupted",
            next_step="Narrow it, or set ESPER_SQL_TIMEOUT_SECONDS (or --timeout, below it) higher",
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
