"""One projection in one DuckDB file: rows, offsets, topic ids and dispositions change in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from esper.core.errors import IntegrityError, OperationFailed
from esper.leyline import short_name
from esper.oona import Position
from esper.projection.columnar import (
    APPLIED,
    Batch,
    Decided,
    Int64s,
    KnownEvents,
    decide,
    fingerprints,
    ledger_rows,
    out_of_order,
    place_word,
    progressed,
    pruned,
)
from esper.projection.definitions._definition import ENGINE_FORMAT, Definition
from esper.projection.files._accounts import ACCOUNTS_SCHEMA
from esper.projection.files._contents import open_cursor, read_progress
from esper.projection.records._judged import Judged
from esper.projection.records._ledger import (
    PROGRESS_SCHEMA,
    EventKey,
    ProducerKey,
    Progress,
    event_key,
    progress_table,
)
from esper.projection.sql._database import Database, RollbackFailed, UnreadableFile, fault, is_held, transaction

_OFFSET_MAX: Final = 2**63 - 1
_READ_ROWS: Final = 100_000
#: The engine's own tables live in a schema of their own, out of the way of bare names.
_SCHEMA: Final = (
    "create schema esper",
    "create table esper.meta (projection varchar, version varchar, format integer, generation bigint)",
    "create table esper.progress (topic varchar, topic_partition integer, topic_id varchar, first_offset bigint,"
    " next_offset bigint, read bigint, applied bigint, filtered bigint, deduplicated bigint, discarded bigint)",
    "create table esper.records (topic varchar, topic_partition integer, record_offset bigint,"
    " append_time timestamptz, disposition varchar,"
    " reason varchar, event_id varchar, attempt uinteger, producer_id varchar, sequence ubigint)",
    *ACCOUNTS_SCHEMA,
)
_COUNTS: Final = ("next_offset", "read", "applied", "filtered", "deduplicated", "discarded")


class Folded(NamedTuple):
    """What a fold came to: the partitions that it moved, where they stand then, and what became of the records."""

    progress: Mapping[Position, Progress]
    decided: Decided


class ProjectionFile:
    """A projection's file, attached for writing under the projection's name; one thread at a time."""

    def __init__(self, database: Database, definition: Definition, path: Path) -> None:
        """Attach `path`, which must hold this version or not exist yet.

        Raises:
            UnreadableFile: the file is damaged or another projection's.
            OperationFailed: this user may not write it, or the disk is full.
            duckdb.Error: another process holds the file (`is_held`).
        """
        self.definition = definition
        self.path = path
        self._database = database
        _attach(database, definition, path)
        try:
            self._cursor = _prepared(database, definition, path)
            self._progress = {one.place: one for one in read_progress(self._cursor)}
            self._high = _read_high(self._cursor)
            self._known = _read_known(self._cursor)
        except BaseException:
            database.detach(definition.name)
            raise

    @property
    def progress(self) -> Mapping[Position, Progress]:
        """How far each partition is folded; empty before `begin`."""
        return self._progress

    def begin(self, progress: Iterable[Progress]) -> None:
        """Write where the fold begins: once, in a file that has read nothing yet."""
        assert not self._progress, "a projection begins once"
        begun = list(progress)
        with self._guarded(), transaction(self._cursor), self._registered("esper_new", progress_table(begun)):
            self._cursor.execute("insert into esper.progress by name from esper_new")
        self._progress = {one.place: one for one in begun}

    def fold(self, batch: Batch, *, until: Mapping[Position, int] | None = None) -> int:
        """Fold what is new to this file, all of it or nothing; return the number of records read.

        Records before the file's offsets, of other topics, and from `until` on are passed over.

        Raises:
            IntegrityError: a partition's records come twice or out of order.
            OperationFailed: a statement of fold.sql cannot take these events, or the disk is full.
            UnreadableFile: the file turned out to be damaged.
            duckdb.OutOfMemoryException: nothing was folded; try again with more room.
        """
        with self._guarded():
            return self._fold(batch, until or {})

    def _fold(self, batch: Batch, until: Mapping[Position, int]) -> int:
        indices = self._unread(batch, until)
        if not len(indices):
            return 0
        with transaction(self._cursor):
            folded = self._insert(batch, indices)
            self._write_progress(list(folded.progress.values()))
            self._before_commit()
        self._advance(folded)
        return len(indices)

    def settle(self) -> None:
        """Commit what was folded and is not committed yet: here nothing, every fold commits."""

    def _insert(self, batch: Batch, indices: Int64s) -> Folded:
        """Insert the ledger's lines and the facts of some records; the offsets are not written yet."""
        decided = decide(
            batch,
            indices,
            types=self.definition.types,
            known=self._known,
            high=self._high,
            ask_ledger=self._applied_before,
        )
        self._insert_ledger(batch, decided)
        self._insert_facts(batch, decided)
        return Folded(progressed(self._progress, batch, decided), decided)

    def _advance(self, folded: Folded) -> None:
        """Go on from what was folded."""
        self._progress = {**self._progress, **folded.progress}
        self._known.add(folded.decided.applied)
        self._high |= folded.decided.high

    def close(self) -> None:
        """Write what is pending and let go of the file."""
        self._cursor.close()
        self._database.detach(self.definition.name)

    def _before_commit(self) -> None:
        """Do nothing: here a commit may still be refused, and tests end the process."""

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn what DuckDB says of the file into our errors; a lack of memory is not the file's fault."""
        try:
            yield
        except RollbackFailed as error:
            # The log has it all; nobody could say what of the transaction is in the file.
            raise UnreadableFile(self.path, f"a transaction could not be rolled back: {error}") from error
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            raise fault(self.path, error) from error

    @contextmanager
    def _registered(self, name: str, table: pa.Table) -> Iterator[None]:
        """Let SQL read an Arrow table by name, for the time of the block.

        A block that raises has broken its transaction, in which nothing can be taken back but all of it: the
        name goes with the rollback.
        """
        self._cursor.register(name, table)
        yield
        self._cursor.unregister(name)

    def _unread(self, batch: Batch, until: Mapping[Position, int]) -> Int64s:
        """Return the indices of the records that this file has not read yet and is to read."""
        ranges = [self._range(place, until) for place in batch.places]
        first = np.array([begin for begin, _ in ranges], dtype=np.int64)[batch.place]
        last = np.array([end for _, end in ranges], dtype=np.int64)[batch.place]
        unread = np.flatnonzero((batch.offset >= first) & (batch.offset < last))
        self._check_order(batch, unread)
        return unread

    def _check_order(self, batch: Batch, indices: Int64s) -> None:
        """Raise IntegrityError unless each partition's records come once and in the order of the log."""
        wrong = out_of_order(batch, indices)
        if wrong is not None:
            (topic, partition), before, after = wrong
            raise IntegrityError(
                f"projection {self.definition.name} was given partition {partition} of topic {topic} out of order",
                cause=f"offset {after} came after offset {before}",
                next_step="Nothing was committed; start it again, and report this if it comes again",
            )

    def _range(self, place: Position, until: Mapping[Position, int]) -> tuple[int, int]:
        """Return from which offset on, and before which one, a partition is to be read; nothing of others."""
        progress = self._progress.get(place)
        return (0, 0) if progress is None else (progress.next_offset, until.get(place, _OFFSET_MAX))

    def _applied_before(self, judged: Sequence[Judged]) -> set[EventKey]:
        """Return which of these events were applied before."""
        wanted = {event_key(one) for one in judged}
        keys = pa.table({"event_id": pa.array(sorted({key.event_id for key in wanted}), pa.string())})
        with self._registered("esper_wanted", keys):
            rows = self._cursor.execute(
                "select topic, topic_partition, event_id, attempt from esper.records"
                " where disposition = 'applied' and event_id in (select event_id from esper_wanted)"
            ).fetchall()
        return wanted & {EventKey(*row) for row in rows}

    def _insert_ledger(self, batch: Batch, decided: Decided) -> None:
        with self._registered("esper_ledger", ledger_rows(batch, decided)):
            self._cursor.execute("insert into esper.records by name from esper_ledger")

    def _insert_facts(self, batch: Batch, decided: Decided) -> None:
        applied = decided.indices[decided.codes == APPLIED]
        kinds = batch.kind[applied]
        for code in np.unique(kinds).tolist():
            type_name = batch.kinds[code]
            numbers = batch.row[applied[kinds == code]]
            table = pruned(batch.rows[type_name], self.definition.paths_by_type[type_name])
            with self._registered(short_name(type_name), table if len(numbers) == len(table) else table.take(numbers)):
                for statement in self.definition.folds_by_type[type_name]:
                    self._run(statement.sql, statement.table)

    def _run(self, sql: str, table: str) -> None:
        try:
            self._cursor.execute(sql)
        except (duckdb.DataError, duckdb.ProgrammingError) as error:
            raise OperationFailed(
                f"projection {self.definition.name} cannot fill its table {table}",
                cause=" ".join(str(error).split()),
                next_step="Correct its fold.sql; the new version is then built from the log",
            ) from error

    def _write_progress(self, progress: Sequence[Progress]) -> None:
        changes = ", ".join(f"{name} = new.{name}" for name in _COUNTS)
        with self._registered("esper_new", progress_table(progress)):
            self._cursor.execute(
                f"update esper.progress old set {changes} from esper_new new"  # noqa: S608 - our own column names
                " where old.topic = new.topic and old.topic_partition = new.topic_partition"
            )


assert set(_COUNTS) < set(PROGRESS_SCHEMA.names), "what changes are columns of the progress"


def _read_high(cursor: duckdb.DuckDBPyConnection) -> dict[ProducerKey, int]:
    rows = cursor.execute(
        "select topic, topic_partition, producer_id, max(sequence) from esper.records"
        " where disposition = 'applied' group by all"
    ).fetchall()
    return {ProducerKey(*key): sequence for *key, sequence in rows}


def _read_known(cursor: duckdb.DuckDBPyConnection) -> KnownEvents:
    """Return the events that were applied, read in batches: there may be many millions."""
    known = KnownEvents()
    reader = cursor.sql(
        "select topic, topic_partition, event_id, attempt from esper.records where disposition = 'applied'"
    ).to_arrow_reader(_READ_ROWS)
    words = dict[tuple[str, int], int]()
    for batch in reader:
        places = zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)
        codes = [words.get(place) or words.setdefault(place, place_word(place)) for place in places]
        known.add(fingerprints(batch.column(2), batch.column(3), np.array(codes, dtype=np.uint64)))
    return known


def _attach(database: Database, definition: Definition, path: Path) -> None:
    try:
        database.attach(path, definition.name)
    except duckdb.Error as error:
        if is_held(error):
            raise
        raise fault(path, error) from error


def _prepared(database: Database, definition: Definition, path: Path) -> duckdb.DuckDBPyConnection:
    """Return a cursor on the attached file, once it holds the tables and says that it is this version."""
    cursor = open_cursor(database, definition)
    try:
        if not cursor.execute("select 1 from duckdb_tables() where database_name = $1", [definition.name]).fetchall():
            _create(cursor, definition)
        check_identity(cursor, definition, path)
    except duckdb.Error as error:
        cursor.close()
        raise fault(path, error) from error
    except UnreadableFile:
        cursor.close()
        raise
    return cursor


def check_identity(cursor: duckdb.DuckDBPyConnection, definition: Definition, path: Path) -> None:
    """Raise UnreadableFile unless the cursor's default database is this version of this projection."""
    try:
        found = cursor.execute("select projection, version, format from esper.meta").fetchall()
    except duckdb.Error as error:
        raise UnreadableFile(path, str(error)) from error
    if found != [(definition.name, definition.version, ENGINE_FORMAT)]:
        raise UnreadableFile(path, f"it holds {found}, not {definition.name} {definition.version}")


def _create(cursor: duckdb.DuckDBPyConnection, definition: Definition) -> None:
    with transaction(cursor):
        for statement in (*_SCHEMA, *definition.schema, *definition.views):
            cursor.execute(statement)
        cursor.execute(
            "insert into esper.meta values ($1, $2, $3, null)", [definition.name, definition.version, ENGINE_FORMAT]
        )
