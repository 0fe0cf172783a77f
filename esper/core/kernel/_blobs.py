"""Bytes by their digest: whatever is read back is what was written, or an error."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from esper.core.crash_points import crash_point
from esper.core.errors import IntegrityError, NotReadyError
from esper.core.ids import Digest, sha256_hex

#: No blob of ours is larger; a reader refuses what is before it reads.
BLOB_BYTES_MAX: Final = 1 << 32
_DIGEST = re.compile(r"[0-9a-f]{64}")
#: Begins the names of files that are not blobs yet, or no longer.
_NEW, _GONE = ".new-", ".gone-"
#: A link is not followed, and a pipe that somebody put there does not hold the reader up.
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class BlobMissing(NotReadyError):
    """The store holds nothing under this digest, or nothing that can be read."""


class BlobStore(Protocol):
    """A place for immutable bytes, named by their SHA-256."""

    def put(self, content: bytes) -> Digest:
        """Store `content` and return its digest; storing it again changes nothing. Durable on return."""

    def get(self, digest: str, *, bytes_max: int = BLOB_BYTES_MAX) -> bytes:
        """Return the bytes of `digest`.

        Raises:
            BlobMissing: nothing is stored under it, or it cannot be read.
            IntegrityError: it is no digest, more than `bytes_max`, or other bytes lie there.
        """

    def has(self, digest: str) -> bool:
        """Return whether something lies under `digest`; only `get` says whether it is right."""


class StoredBlob(NamedTuple):
    """A file of the store that is named as a blob is: its digest, its size, and when it was last stored."""

    digest: str
    size_bytes: int
    stored_ns: int


class DirectoryBlobStore:
    """A blob store in a folder, safe for many processes at once; blobs lie at `ab/abcdef...`.

    Only plain files are read, in folders that are none but the store's own: links and pipes are refused.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, content: bytes) -> Digest:
        digest = sha256_hex(content)
        target = self._path(digest)
        if not self._holds(digest, len(content)) or not _touch(target):
            if target.parent.is_symlink():
                raise self._wrong(digest, "its folder is a link")
            if not target.parent.is_dir():
                target.parent.mkdir(parents=True, exist_ok=True)
                _make_durable(self._root)
            _write_atomically(target, content)
        return digest

    def get(self, digest: str, *, bytes_max: int = BLOB_BYTES_MAX) -> bytes:
        path = self._path(digest)
        try:
            content = self._read(path, digest, bytes_max)
        except FileNotFoundError as error:
            raise BlobMissing(
                f"blob {digest} is missing",
                cause=f"{self._root} holds nothing under it",
                next_step="have the kernel compiled again, or copy the blob from the home that made it",
            ) from error
        except OSError as error:
            raise BlobMissing(
                f"blob {digest} cannot be read",
                cause=f"{error.strerror or error} ({path})",
                next_step="look after the disk and the permissions of the folder",
            ) from error
        if sha256_hex(content) != digest:
            raise self._wrong(digest, "the stored bytes have another SHA-256")
        return content

    def has(self, digest: str) -> bool:
        with suppress(OSError):
            return stat.S_ISREG(self._path(digest).lstat().st_mode)
        return False

    def blobs(self) -> Iterator[StoredBlob]:
        """Yield every file that lies where a blob of its name does, in the order of digests; see `strays`."""
        for path in self._entries():
            if _DIGEST.fullmatch(path.name) and path.parent.name == path.name[:2]:
                with suppress(FileNotFoundError):  # Somebody removed it meanwhile.
                    found = path.lstat()
                    yield StoredBlob(path.name, found.st_size, found.st_mtime_ns)

    def strays(self, *, before_ns: int) -> Iterator[Path]:
        """Yield what lies in the folder and is no blob, last changed before a time: nobody's temporary files."""
        for path in self._entries():
            if not (_DIGEST.fullmatch(path.name) and path.parent.name == path.name[:2]):
                with suppress(FileNotFoundError):
                    if path.lstat().st_mtime_ns < before_ns:
                        yield path

    def remove(self, digest: str, *, stored_before_ns: int) -> int:
        """Remove a blob that was last stored before a time; return the bytes freed, 0 where it is younger or gone.

        Whoever stores the same bytes meanwhile wins: the file is moved aside first, and put back where `put` had
        touched it.

        Raises:
            IntegrityError: it is no digest.
            OSError: the folder cannot be written.
        """
        path = self._path(digest)
        aside = path.with_name(f"{_GONE}{digest}")
        try:
            if path.lstat().st_mtime_ns >= stored_before_ns:
                return 0
            path.replace(aside)
        except FileNotFoundError:
            return 0
        found = aside.lstat()
        if found.st_mtime_ns >= stored_before_ns:
            aside.replace(path)
            return 0
        aside.unlink()
        return found.st_size

    def _entries(self) -> Iterator[Path]:
        if not self._root.is_dir():
            return
        for folder in sorted(self._root.iterdir()):
            if folder.is_dir() and not folder.is_symlink():
                yield from sorted(folder.iterdir())
            else:
                yield folder

    def _holds(self, digest: str, size: int) -> bool:
        """Return whether the store already holds these bytes; a damaged one is to be written anew."""
        path = self._path(digest)
        try:
            return path.lstat().st_size == size and sha256_hex(self._read(path, digest, size)) == digest
        except (OSError, IntegrityError):
            return False

    def _read(self, path: Path, digest: str, bytes_max: int) -> bytes:
        """Return what lies there; raise OSError, and IntegrityError for what is no plain file or too large."""
        if path.parent.is_symlink():
            raise self._wrong(digest, "its folder is a link")
        try:
            descriptor = os.open(path, _READ)
        except OSError:
            if path.is_symlink():
                raise self._wrong(digest, "a link lies there") from None
            raise
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise self._wrong(digest, "no plain file lies there")
        with os.fdopen(descriptor, "rb") as file:
            if found.st_size > bytes_max:
                raise self._wrong(digest, f"{found.st_size} bytes lie there, at most {bytes_max} are read")
            content = file.read(found.st_size)
            if file.read(1):
                raise self._wrong(digest, "it grew while it was read")
            return content

    def _path(self, digest: str) -> Path:
        # A digest comes from a record; anything but 64 hexadecimal digits could name a path elsewhere.
        if not _DIGEST.fullmatch(digest):
            raise self._wrong(digest[:80], "it is not 64 hexadecimal digits")
        return self._root / digest[:2] / digest

    def _wrong(self, digest: str, cause: str) -> IntegrityError:
        return IntegrityError(
            f"blob {digest!r} of {self._root} is refused", cause=cause, next_step="remove it and have it made again"
        )


def _touch(path: Path) -> bool:
    """Let the blob count as stored just now, so that nobody removes it before its event; return False if it is gone."""
    try:
        os.utime(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _write_atomically(target: Path, content: bytes) -> None:
    """Write beside the target, make it durable, rename: a reader sees all of it or nothing, also after a crash."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=_NEW)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        crash_point("store.written")
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    crash_point("store.renamed")
    _make_durable(target.parent)


def _make_durable(folder: Path) -> None:
    """Let a folder's new entries survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
