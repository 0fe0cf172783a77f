"""The current files of all projections of a home, opened together: for writing by one process, or for reading."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Final, TypeVar

import duckdb
import pyarrow as pa

from esper.core.clock import SYSTEM_CLOCK, Clock, Deadline
from esper.core.errors import Busy, EsperError, IntegrityError, NotReadyError, UsageError
from esper.core.ids import new_event_id
from esper.core.rng import jitter
from esper.core.settings import Settings
from esper.oona import Position, TopicCatalog
from esper.projection._accounts import Holds
from esper.projection._asof import Point
from esper.projection._asof_views import PastState, expose_engine
from esper.projection._committed import CommittedFile
from esper.projection._contents import Contents, open_cursor, read_contents, read_digests
from esper.projection._database import Database, UnreadableFile, fault, is_held, quoted
from esper.projection._definition import Definition, choose
from esper.projection._export import write_export
from esper.projection._fence import Fence
from esper.projection._file import ProjectionFile, check_identity
from esper.projection._folder import ProjectionFolder
from esper.projection._reading import Interrupts, Room, run_query
from esper.projection._resolve import Resolved, in_scope, resolve
from esper.projection._safety import check_query

_log = logging.getLogger("esper.projection")
_T = TypeVar("_T")

#: A reader that opened the files itself holds them for one query at most; what it takes to close comes on top.
_CLOSE_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 0.1
#: How often a query is run again that met the exchange of a file.
_EXCHANGES_MAX: Final = 3


class Projections:
    """Queries over attached projections; base of the two ways to open them."""

    def __init__(self, database: Database, definitions: Sequence[Definition], settings: Settings) -> None:
        self.database = database
        self.definitions = tuple(definitions)
        self.interrupts = Interrupts()
        self._room = Room()
        self._settings = settings
        #: Held while a file is exchanged; the count tells that one was.
        self._exchange = threading.Lock()
        self._exchanges = 0

    def query(
        self,
        sql: str,
        parameters: Sequence[object] = (),
        *,
        offsets: Mapping[Position, int] | None = None,
        seconds: float | None = None,
    ) -> pa.Table:
        """Return what one reading statement gives, as of `offsets` where they are given. For any thread.

        It takes `seconds` at most, or as long as the settings allow; raises as `run_query`.
        """
        allowed = self._settings.sql_timeout_seconds
        longest = min(seconds or allowed, allowed)

        def read() -> pa.Table:
            past = None if offsets is None else PastState(self.database, self.definitions, self.catalog, offsets)
            return run_query(
                self.database, sql, parameters, seconds=longest, interrupts=self.interrupts, room=self._room, past=past
            )

        return self._undisturbed(read)

    def resolve(self, point: Point, *, sql: str | None = None, name: str | None = None) -> Resolved:
        """Return which offsets a point of the log is, for what `sql` reads or for one projection. For any thread.

        Raises:
            UsageError: the point or the query cannot be used.
            IntegrityError: a file cannot be read.
        """
        try:
            return self._undisturbed(lambda: resolve(self.database, self._scope(sql, name), point))
        except duckdb.Error as error:
            raise _unreadable(error) from error

    def export(self, folder: Path, name: str, offsets: Mapping[Position, int]) -> Path:
        """Write one projection's state as of `offsets` into a DuckDB file of the folder; return its path.

        For any thread; raises as `write_export`, and UsageError when there is no such projection.
        """

        def write() -> Path:
            (definition,) = choose(self.definitions, [name])
            past = PastState(self.database, [definition], self.catalog, offsets)
            return write_export(self.database, folder, definition, offsets, past=past, interrupts=self.interrupts)

        return self._undisturbed(write)

    @cached_property
    def catalog(self) -> TopicCatalog:
        """Which topic carries which message."""
        return TopicCatalog.load(self._settings)

    def _scope(self, sql: str | None, name: str | None) -> tuple[Definition, ...]:
        if name is not None:
            return choose(self.definitions, [name])
        cursor = self.database.cursor()
        try:
            return in_scope(self.definitions, check_query(cursor, sql or "").tables)
        finally:
            cursor.close()

    def contents(self, names: Iterable[str] | None = None) -> list[Contents]:
        """Return offsets and table hashes of projections, each in one snapshot. For any thread.

        Raises:
            IntegrityError: not even the offsets of one can be read.
        """
        chosen = choose(self.definitions, names)
        return [self._sound(partial(read_contents, self.database, one)) for one in chosen]

    def digests(self, name: str, table: str) -> pa.Table:
        """Return place and digest of every row of a table; raises as `read_digests` and `contents`. For any thread."""
        [chosen] = choose(self.definitions, [name])
        return self._sound(partial(read_digests, self.database, chosen, table))

    def close(self) -> None:
        """Let go of all files."""
        self.database.close()

    def _sound(self, read: Callable[[], _T]) -> _T:
        try:
            return self._undisturbed(read)
        except duckdb.Error as error:
            raise _unreadable(error) from error

    def _undisturbed(self, read: Callable[[], _T]) -> _T:
        """Read again when a file was exchanged meanwhile: names do not resolve for that moment."""
        for _ in range(_EXCHANGES_MAX):
            with self._exchange:
                before = self._exchanges
            try:
                return read()
            except (EsperError, duckdb.Error):
                with self._exchange:
                    disturbed = self._exchanges != before
                if not disturbed:
                    raise
        return read()


class WritableProjections(Projections):
    """Every projection's current file, attached for writing; files that are missing or unreadable are made anew.

    Only the holder of `ProjectionFolder.writing` may open it.
    """

    def __init__(
        self,
        folder: ProjectionFolder,
        definitions: Sequence[Definition],
        settings: Settings,
        *,
        holds: Holds,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Open all files; `holds` asks the log about gaps between offsets.

        Raises:
            Busy: another process holds a file for longer than a query may last.
        """
        super().__init__(Database(folder.path, memory_limit=settings.sql_memory_limit), definitions, settings)
        self._folder = folder
        self._holds = holds
        self._clock = clock
        self.files: dict[str, ProjectionFile] = {}
        try:
            self._fence = Fence(folder.path)
            for definition in self.definitions:
                self.files[definition.name] = self._open(definition)
                self.database.expose(definition.name, definition.relations)
                folder.remove_older(definition.name)
            expose_engine(self.database, self.files)
        except BaseException:
            self.close()
            raise

    def examine(self, definition: Definition, built: Path) -> None:
        """Raise UnreadableFile unless `built` is a sound file of this version. For any thread.

        Raises:
            Busy: a query that began when the file counted has not ended yet.
        """
        self._examined(definition, built)

    def _examined(self, definition: Definition, built: Path) -> dict[str, list[tuple[str, str]]]:
        """Examine a file, and return the columns of its tables and views."""
        alias = f"examined-{new_event_id()}"
        try:
            self.database.attach(built, alias, read_only=True)
        except duckdb.Error as error:
            if is_held(error):
                raise _held(built, error) from error
            raise fault(built, error) from error
        try:
            cursor = self.database.cursor()
            cursor.execute(f"use {quoted(alias)}")
            check_identity(cursor, definition, built)
            cursor.close()
            return self.database.columns(alias)
        finally:
            self.database.detach(alias)

    def exchange(self, definition: Definition, built: Path, *, pinned: bool) -> float:
        """Put a file that `examine` let pass in the place of the current one; queries see one or the other.

        Returns for how many seconds queries waited.

        It may be of another version, or of a projection that is new. An error ends the process that owns these
        projections: it could not tell what it is folding into.
        """
        name = definition.name
        old = self.files.get(name)
        columns, before = self._examined(definition, built), self.database.columns(name)
        # A view that is looked through keeps the columns with which it was made; making one takes 2 ms.
        changed = [one for one in definition.relations if columns.get(one) != before.get(one)]
        if old is not None:
            self.database.checkpoint(name)
        with self._exchange:
            begun = self._clock.monotonic()
            self._exchanges += 1
            if old is not None:
                old.close()
            path = self._folder.promote(definition, built, after=old.path if old else None, pinned=pinned)
            self.database.attach_ahead(path, name)
            others = [one for one in self.definitions if one.name != name]
            self.definitions = tuple(sorted((*others, definition), key=lambda one: one.name))
            gone = set(old.definition.relations) - set(definition.relations) if old else set()
            self.database.expose(name, changed, instead_of=gone)
            seconds = self._clock.monotonic() - begun
        # What a writer reads of its file first takes longer; nobody waits for that.
        self.files[name] = self._file(definition, path)
        if old is None:
            expose_engine(self.database, self.files)
        _log.info("projection %s goes on with %s", name, path.name)
        return seconds

    def _file(self, definition: Definition, path: Path) -> ProjectionFile:
        return CommittedFile(self.database, definition, path, holds=self._holds, fence=self._fence)

    def close(self) -> None:
        """End the queries, write what is pending and let go of all files."""
        self.interrupts.expel_all()
        for file in self.files.values():
            try:
                file.close()
            except duckdb.Error as error:
                _log.warning("projection file %s was not closed cleanly: %s", file.path, error)
        super().close()

    def _open(self, definition: Definition) -> ProjectionFile:
        deadline = Deadline(self._settings.sql_timeout_seconds + _CLOSE_SECONDS, clock=self._clock)
        while True:  # ends with the file, or at the deadline
            path = self._folder.current_or_new(definition)
            try:
                return self._file(definition, path)
            except UnreadableFile:
                self._folder.set_aside(path)
            except duckdb.Error as error:
                if deadline.expired or not is_held(error):
                    raise _held(path, error) from error
                self._clock.sleep(jitter(_RETRY_SECONDS))


class ReadableProjections(Projections):
    """The current files, attached read-only, for a process that finds no projector."""

    def __init__(self, folder: ProjectionFolder, definitions: Sequence[Definition], settings: Settings) -> None:
        """Open the files that there are; `missing` names the others.

        Raises:
            NotReadyError: no projection was ever built.
            Busy: another process writes them now.
            UnreadableFile: a file cannot be read.
        """
        found = [(one, path) for one in definitions if (path := folder.current(one)) is not None]
        if not found:
            raise NotReadyError(
                f"no projection was built in {folder.path}",
                next_step="Run `esper replay`, or `esper serve` to keep them up to date",
            )
        present = [one for one, _ in found]
        super().__init__(Database(folder.path, memory_limit=settings.sql_memory_limit), present, settings)
        self.missing = [one.name for one in definitions if one not in present]
        try:
            for definition, path in found:
                self._attach(definition, path)
            expose_engine(self.database, [one.name for one in present])
        except BaseException:
            self.close()
            raise

    def query(
        self,
        sql: str,
        parameters: Sequence[object] = (),
        *,
        offsets: Mapping[Position, int] | None = None,
        seconds: float | None = None,
    ) -> pa.Table:
        """Return what one reading statement gives; raises as `run_query`."""
        try:
            return super().query(sql, parameters, offsets=offsets, seconds=seconds)
        except UsageError as error:
            if self.missing:
                error.next_step += f"; {', '.join(self.missing)} were not built yet: run `esper replay`"
            raise

    def _attach(self, definition: Definition, path: Path) -> None:
        try:
            self.database.attach(path, definition.name, read_only=True)
            self.database.expose(definition.name, definition.relations)
        except duckdb.Error as error:
            if is_held(error) or not path.exists():
                raise _held(path, error) from error
            raise fault(path, error) from error
        cursor = open_cursor(self.database, definition)
        check_identity(cursor, definition, path)
        cursor.close()


def _unreadable(error: duckdb.Error) -> IntegrityError:
    return IntegrityError(
        "a projection cannot be read",
        cause=" ".join(str(error).split()),
        next_step="`esper replay` builds it again from the log",
    )


def _held(path: Path, error: duckdb.Error) -> Busy:
    return Busy(
        f"projection file {path} is in use",
        cause=" ".join(str(error).split()),
        next_step="Try again in a moment; `esper status` shows who runs",
    )
