"""The current files of all projections of a home, opened together: for writing by one process, or for reading."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import duckdb
import pyarrow as pa

from esper.core.clock import SYSTEM_CLOCK, Clock, Deadline
from esper.core.errors import Busy, EsperError, IntegrityError, NotReadyError, UsageError
from esper.core.ids import new_event_id
from esper.core.rng import jitter
from esper.core.settings import Settings
from esper.projection._contents import Contents, open_cursor, read_contents
from esper.projection._database import Database, UnreadableFile, fault, is_held, quoted
from esper.projection._definition import Definition, choose
from esper.projection._file import ProjectionFile, check_identity
from esper.projection._folder import ProjectionFolder
from esper.projection._reading import Interrupts, run_query

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
        self._settings = settings
        #: Held while a file is exchanged; the count tells that one was.
        self._exchange = threading.Lock()
        self._exchanges = 0

    def query(self, sql: str, parameters: Sequence[object] = ()) -> pa.Table:
        """Return what one reading statement gives; raises as `run_query`. For any thread."""
        seconds = self._settings.sql_timeout_seconds
        return self._undisturbed(
            lambda: run_query(self.database, sql, parameters, seconds=seconds, interrupts=self.interrupts)
        )

    def contents(self, names: Iterable[str] | None = None) -> list[Contents]:
        """Return offsets and table hashes of projections, each in one snapshot. For any thread.

        Raises:
            IntegrityError: not even the offsets of one can be read.
        """
        chosen = choose(self.definitions, names)
        try:
            return [self._undisturbed(partial(read_contents, self.database, one)) for one in chosen]
        except duckdb.Error as error:
            raise IntegrityError(
                "a projection cannot be read",
                cause=" ".join(str(error).split()),
                next_step="`esper replay` builds it again from the log",
            ) from error

    def close(self) -> None:
        """Let go of all files."""
        self.database.close()

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
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Open all files.

        Raises:
            Busy: another process holds a file for longer than a query may last.
        """
        super().__init__(Database(folder.path, memory_limit=settings.sql_memory_limit), definitions, settings)
        self._folder = folder
        self._clock = clock
        self.files: dict[str, ProjectionFile] = {}
        try:
            for definition in self.definitions:
                self.files[definition.name] = self._open(definition)
                self.database.expose(definition.name, definition.relations)
                folder.remove_older(definition)
        except BaseException:
            self.close()
            raise

    def examine(self, name: str, built: Path) -> None:
        """Raise UnreadableFile unless `built` is a sound file of this projection's version. For any thread."""
        definition = self.files[name].definition
        alias = f"examined-{new_event_id()}"
        try:
            self.database.attach(built, alias, read_only=True)
        except duckdb.Error as error:
            raise fault(built, error) from error
        try:
            cursor = self.database.cursor()
            cursor.execute(f"use {quoted(alias)}")
            check_identity(cursor, definition, built)
            cursor.close()
        finally:
            self.database.detach(alias)

    def adopt(self, name: str, built: Path) -> None:
        """Put a file that `examine` let pass in the place of the current one; queries see one or the other.

        An error ends the process that owns these projections: it could not tell what it is folding into.
        """
        old = self.files[name]
        path = self._folder.next(old.definition, after=old.path)
        with self._exchange:
            self._exchanges += 1
            old.close()
            built.rename(path)
            self.files[name] = ProjectionFile(self.database, old.definition, path)
        _log.info("projection %s goes on with %s", name, path.name)
        self._folder.remove_older(old.definition)

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
                return ProjectionFile(self.database, definition, path)
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
        except BaseException:
            self.close()
            raise

    def query(self, sql: str, parameters: Sequence[object] = ()) -> pa.Table:
        """Return what one reading statement gives; raises as `run_query`."""
        try:
            return super().query(sql, parameters)
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


def _held(path: Path, error: duckdb.Error) -> Busy:
    return Busy(
        f"projection file {path} is in use",
        cause=" ".join(str(error).split()),
        next_step="Try again in a moment; `esper status` shows who runs",
    )
