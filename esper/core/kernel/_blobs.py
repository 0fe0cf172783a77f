"""Bytes by their digest: whatever is read back is what was written, or an error."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Protocol

from esper.core.errors import IntegrityError, NotReadyError
from esper.core.files import make_durable
from esper.core.ids import Digest, sha256_hex
from esper.core.kernel._shards import GONE, NEW, is_shard, locked, place, written_beside

_logger = logging.getLogger("esper.kernel")

#: No blob of ours is larger; a reader refuses what is before it reads.
BLOB_BYTES_MAX: Final = 1 << 32
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES: Final = 1 << 20
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
        """Return whether something lies under `digest`; only `get` says whether it is right.

        False for what is no digest: nothing can lie under it.
        """

    def touch(self, digest: str) -> bool:
        """Let a blob count as stored just now, so that nobody removes it before the event that names it.

        Return whether it is there.
        """


class StoredBlob(NamedTuple):
    """A file of the store that is named as a blob is: its digest, its size, and when it was last stored."""

    digest: str
    size_bytes: int
    stored_ns: int


class Stray(NamedTuple):
    """What lies in the folder and is no blob: where, since when, why it is none, and whether a writer left it."""

    path: Path
    changed_ns: int
    reason: str
    leftover: bool = False


class DirectoryBlobStore:
    """A blob store in a folder, safe for many processes at once; blobs lie at `ab/abcdef...`.

    Only plain files are read, in folders that are none but the store's own: links and pipes are refused. What `put`
    stored or `touch` found is not removed as older than that, whoever collects at the same time: all three hold the
    lock of the blob's folder. `get` holds none; it sees all of a blob or nothing.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def root(self) -> Path:
        """The folder."""
        return self._root

    def put(self, content: bytes) -> Digest:
        digest = sha256_hex(content)
        target = self._path(digest)
        if not self._holds(digest, len(content)) or not self.touch(digest):
            self._make_folder(digest, target.parent)
            with written_beside(target, content) as temporary, locked(target.parent, alone=True):
                aside = place(temporary, target)
            if aside is not None:
                _logger.warning("a folder lay where blob %s belongs; it lies at %s now", digest, aside)
        return digest

    def get(self, digest: str, *, bytes_max: int = BLOB_BYTES_MAX) -> bytes:
        with self._opened(digest, bytes_max) as (file, size):
            content = file.read(size)
            grew = bool(file.read(1))
        self._check(digest, sha256_hex(content), grew=grew)
        return content

    def check(self, digest: str) -> int:
        """Read a blob in pieces and return its size in bytes; raises as `get` does, and holds no more than a piece."""
        hashed, read = hashlib.sha256(), 0
        with self._opened(digest, BLOB_BYTES_MAX) as (file, size):
            while read <= size and (chunk := file.read(_CHUNK_BYTES)):
                hashed.update(chunk)
                read += len(chunk)
        self._check(digest, hashed.hexdigest(), grew=read > size)
        return read

    def has(self, digest: str) -> bool:
        with suppress(OSError, IntegrityError):
            return stat.S_ISREG(self._path(digest).lstat().st_mode)
        return False

    def touch(self, digest: str) -> bool:
        path = self._path(digest)
        try:
            with locked(path.parent, alone=False):
                os.utime(path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError:  # A store that we may only read: whoever may remove of it has its own word for what is young.
            return self.has(digest)
        return True

    def check_root(self) -> None:
        """Refuse a store whose folder is a link or no folder; one that nobody made yet is sound.

        Raises:
            IntegrityError: it is.
        """
        if self._root.is_symlink() or (self._root.exists() and not self._root.is_dir()):
            raise IntegrityError(
                f"the blob store {self._root} is refused",
                cause=f"a {'link' if self._root.is_symlink() else 'file'} lies where a folder belongs",
                next_step="put the folder back there; nothing was removed",
            )

    def blobs(self) -> Iterator[StoredBlob]:
        """Yield every plain file that lies where a blob of its name does, in the order of digests; see `strays`."""
        for path in self._entries():
            with suppress(FileNotFoundError):  # Somebody removed it meanwhile.
                found = path.lstat()
                if not _why_stray(path, found):
                    yield StoredBlob(path.name, found.st_size, found.st_mtime_ns)

    def strays(self, *, before_ns: int = 1 << 63) -> Iterator[Stray]:
        """Yield what lies in the folder and is no blob, last changed before a time."""
        for path in self._entries():
            with suppress(FileNotFoundError):
                found = path.lstat()
                if found.st_mtime_ns < before_ns and (reason := _why_stray(path, found)):
                    leftover = path.name.startswith((NEW, GONE)) and stat.S_ISREG(found.st_mode)
                    yield Stray(path, found.st_mtime_ns, reason, leftover and is_shard(path.parent))

    def remove(self, digest: str, *, stored_before_ns: int) -> int | None:
        """Remove a blob that was last stored or touched before a time; return the bytes freed, None where it stays.

        One step: a crash leaves the blob or nothing. Durable on return.

        Raises:
            IntegrityError: it is no digest.
            OSError: the folder cannot be written.
        """
        path = self._path(digest)
        try:
            with locked(path.parent, alone=True):
                found = path.lstat()
                if not stat.S_ISREG(found.st_mode) or found.st_mtime_ns >= stored_before_ns:
                    return None
                path.unlink()
        except FileNotFoundError:
            return None
        make_durable(path.parent)
        return found.st_size

    def _entries(self) -> Iterator[Path]:
        if not self._root.is_dir():
            return
        for folder in sorted(self._root.iterdir()):
            if is_shard(folder):
                yield from sorted(folder.iterdir())
            else:
                yield folder

    def _make_folder(self, digest: str, folder: Path) -> None:
        if folder.is_symlink():
            raise self._wrong(digest, "its folder is a link")
        if folder.is_dir():
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise self._wrong(digest, "its folder is none") from error
        make_durable(self._root)

    def _holds(self, digest: str, size: int) -> bool:
        """Return whether the store already holds these bytes; a damaged one is to be written anew."""
        try:
            return self._path(digest).lstat().st_size == size and self.check(digest) == size
        except (OSError, BlobMissing, IntegrityError):
            return False

    @contextmanager
    def _opened(self, digest: str, bytes_max: int) -> Iterator[tuple[BinaryIO, int]]:
        """Open what lies there and say how large it is; raises as `get` does, also for what happens inside."""
        path = self._path(digest)
        try:
            with os.fdopen(self._descriptor(path, digest), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size > bytes_max:
                    raise self._wrong(digest, f"{size} bytes lie there, at most {bytes_max} are read")
                yield file, size
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

    def _descriptor(self, path: Path, digest: str) -> int:
        """Open a plain file; raise OSError, and IntegrityError for what is none."""
        if path.parent.is_symlink():
            raise self._wrong(digest, "its folder is a link")
        try:
            descriptor = os.open(path, _READ)
        except OSError:
            if path.is_symlink():
                raise self._wrong(digest, "a link lies there") from None
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise self._wrong(digest, "no plain file lies there")
        return descriptor

    def _check(self, digest: str, found: str, *, grew: bool) -> None:
        if grew:
            raise self._wrong(digest, "it grew while it was read")
        if found != digest:
            raise self._wrong(digest, "the stored bytes have another SHA-256")

    def _path(self, digest: str) -> Path:
        # A digest comes from a record; anything but 64 hexadecimal digits could name a path elsewhere.
        if not _DIGEST.fullmatch(digest):
            raise self._wrong(digest[:80], "it is not 64 hexadecimal digits")
        return self._root / digest[:2] / digest

    def _wrong(self, digest: str, cause: str) -> IntegrityError:
        return IntegrityError(
            f"blob {digest!r} of {self._root} is refused", cause=cause, next_step="remove it and have it made again"
        )


def _why_stray(path: Path, found: os.stat_result) -> str:
    """Return why what lies there is no blob; "" if it is one."""
    if stat.S_ISLNK(found.st_mode):
        return "a link lies there"
    if _DIGEST.fullmatch(path.name) and path.parent.name == path.name[:2]:
        return "" if stat.S_ISREG(found.st_mode) else "no plain file lies there"
    return "a writer did not finish it" if path.name.startswith((NEW, GONE)) else "the store puts nothing there"
