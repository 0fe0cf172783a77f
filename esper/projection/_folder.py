"""The files of a home's projections: `<name>-<version>.<generation>.duckdb`, the highest generation counts.

A rebuilt projection gets the next generation, so that its file never takes the place of one that is open;
the old one goes away once nobody is left who attaches it.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from filelock import FileLock, Timeout

from esper.core.errors import Busy
from esper.projection._definition import Definition

_log = logging.getLogger("esper.projection.folder")

_NAME: Final = re.compile(r"(?P<name>[a-z][a-z0-9_]*)-(?P<version>[0-9a-f]{16})\.(?P<generation>[0-9]+)\.duckdb")
_BUILDING: Final = re.compile(r"building-(?P<pid>[0-9]+)-.*\.duckdb")


@dataclass(frozen=True, order=True)
class StoredFile:
    """A projection file in the folder, by what its name says."""

    name: str
    version: str
    generation: int
    path: Path


class ProjectionFolder:
    """The folder `projections` of a home."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def files(self) -> list[StoredFile]:
        """Return all projection files, of any version, by name, version and generation."""
        found = []
        for path in self.path.glob("*.duckdb"):
            match = _NAME.fullmatch(path.name)
            if match:
                found.append(StoredFile(match["name"], match["version"], int(match["generation"]), path))
        return sorted(found)

    def current(self, definition: Definition) -> Path | None:
        """Return the file of this version that counts, or None when there is none."""
        mine = self._generations(definition)
        return mine[-1].path if mine else None

    def current_or_new(self, definition: Definition) -> Path:
        """Return the file that counts, or the path where it is to be made."""
        return self.current(definition) or self.next(definition)

    def next(self, definition: Definition, *, after: Path | None = None) -> Path:
        """Return the path of the next generation; `after` is one that counts though its file may be deleted."""
        generations = [one.generation for one in self._generations(definition)]
        match = _NAME.fullmatch(after.name) if after is not None else None
        if match:
            generations.append(int(match["generation"]))
        return self.path / f"{definition.name}-{definition.version}.{max(generations, default=0) + 1}.duckdb"

    def building(self, definition: Definition) -> Path:
        """Return the path where this process builds a new file, out of everybody's sight."""
        return self.path / f"building-{os.getpid()}-{definition.name}-{definition.version}.duckdb"

    def remove_older(self, definition: Definition) -> None:
        """Delete the generations of this version that no longer count."""
        for old in self._generations(definition)[:-1]:
            remove(old.path)

    def remove_abandoned(self) -> None:
        """Delete what processes that no longer live left half-built."""
        for path in self.path.glob("building-*.duckdb"):
            match = _BUILDING.fullmatch(path.name)
            if match and not psutil.pid_exists(int(match["pid"])):
                remove(path)

    def set_aside(self, path: Path) -> Path:
        """Rename a file that cannot be read, so that a new one can be built; return its new path."""
        number = 1
        while (kept := path.with_name(f"{path.name}.unreadable-{number}")).exists():  # ends: finitely many files
            number += 1
        path.rename(kept)
        wal = _wal(path)
        if wal.exists():
            wal.rename(_wal(kept))
        _log.warning("projection file %s cannot be read; it is kept as %s and built again", path, kept.name)
        return kept

    @contextmanager
    def writing(self, *, seconds: float) -> Iterator[None]:
        """Be the only process that writes projections of this home.

        Raises:
            Busy: another process was that for `seconds`.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / "writer.lock", thread_local=False)
        try:
            lock.acquire(timeout=seconds)
        except Timeout as error:
            raise Busy(
                f"the projections in {self.path} are being written",
                cause=f"another process held them for {seconds:g} seconds",
                next_step="`esper status` shows whether a projector runs; try again when it has started",
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _generations(self, definition: Definition) -> list[StoredFile]:
        return [one for one in self.files() if (one.name, one.version) == (definition.name, definition.version)]


def remove(path: Path) -> None:
    """Delete a database file and its write-ahead log."""
    path.unlink(missing_ok=True)
    _wal(path).unlink(missing_ok=True)


def _wal(path: Path) -> Path:
    return path.with_name(f"{path.name}.wal")
