"""The current files of all projections of a home, opened together: what writer and readers share, and the readers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Final, TypeVar

import duckdb
import pyarrow as pa

from esper.core.errors import Busy, EsperError, IntegrityError, NotReadyError, UsageError
from esper.core.settings import Settings
from esper.oona import Position, TopicCatalog
from esper.projection.definitions._definition import Definition, choose
from esper.projection.definitions._folder import ProjectionFolder
from esper.projection.files._contents import Contents, open_cursor, read_contents, read_digests
from esper.projection.files._file import check_identity
from esper.projection.points._asof import Point
from esper.projection.points._asof_views import PastState, expose_engine
from esper.projection.points._resolve import Resolved, in_scope, resolve
from esper.projection.serving._export import write_export
from esper.projection.sql._database import Database, fault, is_held
from esper.projection.sql._reading import Interrupts, Room, run_query
from esper.projection.sql._safety import check_query

_log = logging.getLogger("esper.projection")
_T = TypeVar("_T")

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
                raise held(path, error) from error
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


def held(path: Path, error: duckdb.Error) -> Busy:
    """Return our error for a file that somebody else has open."""
    return Busy(
        f"projection file {path} is in use",
        cause=" ".join(str(error).split()),
        next_step="Try again in a moment; `esper status` shows who runs",
    )
