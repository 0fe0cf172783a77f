"""The files of a home's projections: `<name>-<version>.<generation>.duckdb`, the highest generation counts.

Generations count within a name, over all its versions. A rebuilt projection gets the next one, so that its file
never takes the place of one that is open, and one rename makes it count. The one that counted before is kept for a
rollback, which is the same rename: the kept file gets the next generation. `.pinned` before the suffix says that it
counts whatever version the projection's folder has by now; `definitions/` holds what such a version is made of.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from filelock import FileLock, Timeout

from esper.core.errors import Busy
from esper.projection.definitions._definition import Definition

_log = logging.getLogger("esper.projection.folder")

_NAME: Final = re.compile(
    r"(?P<name>[a-z][a-z0-9_]*)-(?P<version>[0-9a-f]{16})\.(?P<generation>[0-9]+)"
    r"(?P<pinned>\.pinned)?\.duckdb"
)
#: The file that counts, and the one before it.
_KEPT: Final = 2
_BUILDING: Final = re.compile(r"building-(?P<pid>[0-9]+)-.*")


@dataclass(frozen=True, order=True)
class StoredFile:
    """A projection file in the folder, by what its name says."""

    name: str
    generation: int
    version: str
    pinned: bool
    path: Path


def stored(path: Path) -> StoredFile | None:
    """Return what the name of a projection file says, or None for any other file."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    return StoredFile(match["name"], int(match["generation"]), match["version"], match["pinned"] is not None, path)


class ProjectionFolder:
    """The folder `projections` of a home."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def files(self) -> list[StoredFile]:
        """Return all projection files, of any version, by name and generation."""
        return sorted(found for path in self.path.glob("*.duckdb") if (found := stored(path)) is not None)

    def live(self, name: str) -> StoredFile | None:
        """Return the file of a projection that counts, of whatever version, or None when there is none."""
        mine = self._of(name)
        return mine[-1] if mine else None

    def kept(self, name: str) -> StoredFile | None:
        """Return the file that counted before the one that does now, or None when there is none."""
        mine = self._of(name)
        return mine[-2] if len(mine) > 1 else None

    def current(self, definition: Definition) -> Path | None:
        """Return the latest file of this version, or None when there is none."""
        mine = [one for one in self._of(definition.name) if one.version == definition.version]
        return mine[-1].path if mine else None

    def current_or_new(self, definition: Definition) -> Path:
        """Return the file of this version that counts, or the path where it is to be made.

        A version that comes back, for its folder is again what it was, counts again with what it had folded. For the
        writer alone.
        """
        path = self.current(definition)
        live = self.live(definition.name)
        if path is None or live is None or live.path == path:
            return path or self.next(definition)
        return self.promote(definition, path)

    def next(self, definition: Definition, *, after: Path | None = None, pinned: bool = False) -> Path:
        """Return the path of the next generation; `after` is one that counts though its file may be deleted."""
        generations = [one.generation for one in self._of(definition.name)]
        last = stored(after) if after is not None else None
        if last is not None:
            generations.append(last.generation)
        generation = max(generations, default=0) + 1
        return self.path / f"{definition.name}-{definition.version}.{generation}{'.pinned' * pinned}.duckdb"

    def promote(self, definition: Definition, path: Path, *, after: Path | None = None, pinned: bool = False) -> Path:
        """Make a closed file of this version the one that counts; return its new path. For the writer alone."""
        promoted = self.next(definition, after=after, pinned=pinned)
        path.rename(promoted)
        return promoted

    def building(self, definition: Definition) -> Path:
        """Return the path where this process builds a new file, out of everybody's sight."""
        return self.path / f"building-{os.getpid()}-{definition.name}-{definition.version}.duckdb"

    def remove_older(self, name: str) -> None:
        """Delete all files of a projection but the one that counts and the one kept for a rollback."""
        for old in self._of(name)[:-_KEPT]:
            remove(old.path)

    def remove_abandoned(self) -> None:
        """Delete what processes that no longer live left half-built."""
        for path in self.path.glob("building-*"):
            match = _BUILDING.fullmatch(path.name)
            if match and not psutil.pid_exists(int(match["pid"])):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

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

    def _of(self, name: str) -> list[StoredFile]:
        return [one for one in self.files() if one.name == name]


def remove(path: Path) -> None:
    """Delete a database file and its write-ahead log."""
    path.unlink(missing_ok=True)
    _wal(path).unlink(missing_ok=True)


def _wal(path: Path) -> Path:
    return path.with_name(f"{path.name}.wal")
