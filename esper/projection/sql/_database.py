"""The DuckDB that holds attached projection files and can reach nothing else."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import duckdb

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.errors import EsperError, IntegrityError, OperationFailed, SettingsError

#: What an interrupted query takes to end.
_CLOSE_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 0.05
_log = logging.getLogger("esper.projection.database")

_STORAGE_WORDS: Final = tuple(
    os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE)
)
_INVALIDATED: Final = "has been invalidated because of a previous fatal error"
#: As DuckDB says it of a commit, which is another error than that of a statement.
_SHORT_OF_MEMORY: Final = "could not allocate block"
_LOCK_MESSAGE: Final = "Could not set lock on file"


class UnreadableFile(IntegrityError):
    """A projection file at `path` that DuckDB cannot read, or that is not what its name says."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(
            f"projection file {path} cannot be read",
            cause=" ".join(cause.split()),
            next_step="`esper replay` builds it again from the log",
        )
        self.path = path


def fault(path: Path, error: duckdb.Error) -> EsperError:
    """Return our error for what DuckDB says of a file that it cannot use.

    A full disk, a lack of permission or of memory is no damage: the file is good once that is mended. Nor is a
    database that ended because of a fault of its own, in whichever statement that was.
    """
    text = " ".join(str(error).split())
    if isinstance(error, duckdb.FatalException) and _INVALIDATED in text:
        return OperationFailed(
            f"projection file {path} cannot be used any more by this process", cause=text, next_step="Start it again"
        )
    if isinstance(error, duckdb.OutOfMemoryException) or _SHORT_OF_MEMORY in text:
        return OperationFailed(
            f"projection file {path} cannot be used",
            cause=text,
            next_step="Set ESPER_SQL_MEMORY_LIMIT higher, or ESPER_REBUILD_MEMORY_LIMIT for a rebuild",
        )
    if any(words in text for words in _STORAGE_WORDS):
        return OperationFailed(
            f"projection file {path} cannot be written",
            cause=text,
            next_step="Free space on the disk or correct the permissions of the folder, then start again",
        )
    return UnreadableFile(path, text)


def is_held(error: duckdb.Error) -> bool:
    """Return whether another process, or a query of this one that has not ended yet, holds the file."""
    return _LOCK_MESSAGE in str(error) or isinstance(error, duckdb.ResourceInUseException)


def quoted(name: str) -> str:
    """Return `name` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def text_literal(text: str) -> str:
    """Return `text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


class RollbackFailed(duckdb.OutOfMemoryException):
    """Part of a transaction that failed could not be taken back, for lack of memory."""


class Database:
    """One DuckDB instance for the files of one folder.

    Files outside the folder, other protocols, extensions and Python variables are out of reach, and no
    setting can be changed any more. Unless it may spill, work that needs more than `memory_limit` fails.
    Cursors may be used by one thread each.
    """

    def __init__(
        self,
        folder: Path,
        *,
        memory_limit: str,
        threads: int | None = None,
        setting: str = "ESPER_SQL_MEMORY_LIMIT",
        spill: Path | None = None,
    ) -> None:
        """Open it; `setting` is where the limit comes from. With no number of `threads` DuckDB takes every core.

        What does not fit into memory goes into the folder `spill`, which DuckDB makes when it needs it; with none,
        nothing does: a query that asks for too much is to fail, not to fill a disk.

        Raises:
            SettingsError: DuckDB does not understand `memory_limit`.
        """
        try:
            self._root = duckdb.connect(
                ":memory:",
                config={
                    "memory_limit": memory_limit,
                    "temp_directory": "" if spill is None else str(spill),
                    "python_enable_replacements": False,
                    "autoinstall_known_extensions": False,
                    "autoload_known_extensions": False,
                    "allow_community_extensions": False,
                },
            )
        except duckdb.Error as error:
            raise SettingsError(
                f"{setting}={memory_limit} cannot be used",
                cause=" ".join(str(error).split()),
                next_step="Write a size such as 2GB",
            ) from error
        self._lock = threading.Lock()
        #: Alias -> file that is attached before its writer asks for it.
        self._ahead: dict[str, Path] = {}
        self._root.execute("set global TimeZone = 'UTC'")
        if threads is not None:
            self._root.execute(f"set global threads = {threads}")
        self._root.execute(f"set allowed_directories = [{text_literal(str(folder))}]")
        self._root.execute("set enable_external_access = false")
        self._root.execute("set lock_configuration = true")

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """Return a connection of its own to the same instance, for one thread."""
        with self._lock:
            return self._root.cursor()

    def attach(self, path: Path, alias: str, *, read_only: bool = False) -> None:
        """Attach a file, making it when it is not there; raises duckdb.Error when it cannot be used."""
        mode = " (read_only)" if read_only else ""
        with self._lock:
            if self._ahead.pop(alias, None) == path:
                return
            self._root.execute(f"attach {text_literal(str(path))} as {quoted(alias)}{mode}")

    def attach_ahead(self, path: Path, alias: str) -> None:
        """Attach a file for queries at once; the next `attach` of it, by who will write it, finds it done."""
        self.attach(path, alias)
        self._ahead[alias] = path

    def checkpoint(self, alias: str) -> None:
        """Write what is pending into a file, so that detaching it takes no time; readers may go on."""
        with self._lock:
            try:
                self._root.execute(f"checkpoint {quoted(alias)}")
            except duckdb.TransactionException as error:
                _log.debug("%s is not written yet: %s", alias, error)

    def detach(self, alias: str) -> None:
        """Write what is pending and let go of a file; results that are still being read stay readable."""
        with self._lock:
            self._root.execute(f"detach {quoted(alias)}")

    def expose(self, alias: str, relations: Iterable[str], *, instead_of: Iterable[str] = ()) -> None:
        """Let tables and views of an attached file be named without the file, instead of others, all at once."""
        with self._lock, transaction(self._root):
            for name in instead_of:
                self._root.execute(f"drop view if exists memory.main.{quoted(name)}")
            for name in relations:
                source = f"{quoted(alias)}.main.{quoted(name)}"
                self._root.execute(f"create or replace view memory.main.{quoted(name)} as from {source}")

    def columns(self, alias: str) -> dict[str, list[tuple[str, str]]]:
        """Return names and types of the columns of each table and view of an attached file."""
        cursor = self.cursor()
        rows = cursor.execute(
            "select table_name, column_name, data_type from duckdb_columns()"
            " where database_name = $1 and schema_name = 'main' order by table_name, column_index",
            [alias],
        ).fetchall()
        cursor.close()
        found: dict[str, list[tuple[str, str]]] = {}
        for relation, name, kind in rows:
            found.setdefault(relation, []).append((name, kind))
        return found

    def close(self) -> None:
        """Detach every file and end.

        Raises:
            duckdb.Error: a query did not end within the time that an interrupt takes.
        """
        deadline = Deadline(_CLOSE_SECONDS)
        while True:  # ends with the connection, or at the deadline
            try:
                with self._lock:
                    self._root.close()
            except duckdb.ResourceInUseException:
                if deadline.expired:
                    raise
                SYSTEM_CLOCK.sleep(_RETRY_SECONDS)
            else:
                return


@contextmanager
def transaction(cursor: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Commit what the block does, or nothing of it when it raises."""
    begin_transaction(cursor)
    try:
        yield
        cursor.execute("commit")
    except BaseException:
        rollback(cursor)
        raise


def begin_transaction(cursor: duckdb.DuckDBPyConnection) -> None:
    """Begin, after what could not be rolled back for lack of memory when it failed."""
    try:
        cursor.execute("begin transaction")
    except duckdb.TransactionException:
        try:
            cursor.execute("rollback")
        except duckdb.OutOfMemoryException as error:
            raise RollbackFailed(str(error)) from error
        cursor.execute("begin transaction")


def rollback(cursor: duckdb.DuckDBPyConnection) -> None:
    """Roll back.

    Raises:
        RollbackFailed: DuckDB had no memory even for that. What it appended may be seen from now on, so that the file
            as this process holds it is of no use any more.
    """
    try:
        cursor.execute("rollback")
    except duckdb.TransactionException as error:
        _log.debug("nothing is left to be rolled back: %s", error)
    except duckdb.Error as error:
        raise RollbackFailed(str(error)) from error
