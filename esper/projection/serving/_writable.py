"""The current files of all projections of a home, opened together by their one writer, and exchanged one by one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import duckdb

from esper.core.clock import SYSTEM_CLOCK, Clock, Deadline
from esper.core.ids import new_event_id
from esper.core.rng import jitter
from esper.core.settings import Settings
from esper.projection.definitions._definition import Definition
from esper.projection.definitions._folder import ProjectionFolder
from esper.projection.files._accounts import Holds
from esper.projection.files._committed import CommittedFile
from esper.projection.files._fence import Fence
from esper.projection.files._file import ProjectionFile, check_identity
from esper.projection.points._asof_views import expose_engine
from esper.projection.serving._projections import Projections, held
from esper.projection.sql._database import Database, UnreadableFile, fault, is_held, quoted

_log = logging.getLogger("esper.projection")

#: A reader that opened the files itself holds them for one query at most; what it takes to close comes on top.
_CLOSE_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 0.1


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
                raise held(built, error) from error
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
                return self._exposed(definition, path)
            except UnreadableFile:
                self._folder.set_aside(path)
            except duckdb.Error as error:
                if deadline.expired or not is_held(error):
                    raise held(path, error) from error
                self._clock.sleep(jitter(_RETRY_SECONDS))

    def _exposed(self, definition: Definition, path: Path) -> ProjectionFile:
        file = self._file(definition, path)
        try:
            self.database.expose(definition.name, definition.relations)
        except duckdb.Error as error:
            # A view that was changed by hand, so that others which look through it make no sense any more.
            file.close()
            raise fault(path, error) from error
        return file
