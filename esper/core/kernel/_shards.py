"""The folders of a blob store: their locks, and how a file comes to lie in one, whole or not at all."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from esper.core.crash_points import crash_point
from esper.core.files import make_durable

#: Begin the names of files that are not blobs yet, or no longer (earlier versions moved them aside first).
NEW: Final = ".new-"
GONE: Final = ".gone-"
#: Begins the names of folders that lay where a blob belongs.
FOREIGN: Final = ".foreign-"
_SHARD: Final = re.compile(r"[0-9a-f]{2}")
_FOLDER: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW


def is_shard(folder: Path) -> bool:
    """Return whether a folder is one that blobs lie in, by its name and kind."""
    return bool(_SHARD.fullmatch(folder.name)) and folder.is_dir() and not folder.is_symlink()


@contextmanager
def locked(folder: Path, *, alone: bool) -> Iterator[None]:
    """Hold the lock of a folder, `alone` or with others who share it; it is free once its holder is dead.

    The lock is that of the folder itself (flock), so it leaves no file. Threads exclude each other as processes do.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: it is a link or no folder.
    """
    descriptor = os.open(folder, _FOLDER)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def written_beside(target: Path, content: bytes) -> Iterator[Path]:
    """Write `content` beside its place and make it durable; what was not placed by the end of the block goes."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=NEW)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        crash_point("store.written")
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def place(temporary: Path, target: Path) -> Path | None:
    """Rename a written file to its place: a reader sees all of it or nothing, also after a crash.

    A folder that lies there is moved aside, since nothing can be renamed over one; return where to, else None. Call
    it with the lock alone.
    """
    aside: Path | None = None
    try:
        if stat.S_ISDIR(target.lstat().st_mode):
            aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=FOREIGN))
            target.replace(aside)
    except FileNotFoundError:
        pass
    temporary.replace(target)
    crash_point("store.renamed")
    make_durable(target.parent)
    return aside
