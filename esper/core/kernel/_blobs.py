"""Bytes by their digest: whatever is read back is what was written, or an error."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import Final, Protocol

from esper.core.errors import IntegrityError, NotReadyError
from esper.core.ids import Digest, sha256_hex

#: No blob of ours is larger; a reader refuses what is before it reads.
BLOB_BYTES_MAX: Final = 1 << 32
_DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobMissing(NotReadyError):
    """The store holds nothing under this digest."""


class BlobStore(Protocol):
    """A place for immutable bytes, named by their SHA-256."""

    def put(self, content: bytes) -> Digest:
        """Store `content` and return its digest; storing it again changes nothing. Durable on return."""

    def get(self, digest: str, *, bytes_max: int = BLOB_BYTES_MAX) -> bytes:
        """Return the bytes of `digest`.

        Raises:
            BlobMissing: nothing is stored under it.
            IntegrityError: it is no digest, more than `bytes_max`, or other bytes lie there.
        """

    def has(self, digest: str) -> bool:
        """Return whether something lies under `digest`; only `get` says whether it is right."""


class DirectoryBlobStore:
    """A blob store in a folder, safe for many processes at once; blobs lie at `ab/abcdef...`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, content: bytes) -> Digest:
        digest = sha256_hex(content)
        target = self._path(digest)
        if not _holds(target, digest, len(content)):
            if not target.parent.is_dir():
                target.parent.mkdir(parents=True, exist_ok=True)
                _make_durable(self._root)
            _write_atomically(target, content)
        return digest

    def get(self, digest: str, *, bytes_max: int = BLOB_BYTES_MAX) -> bytes:
        path = self._path(digest)
        try:
            size = path.stat().st_size
            if size > bytes_max:
                raise self._wrong(digest, f"{size} bytes lie there, at most {bytes_max} are read")
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise BlobMissing(
                f"blob {digest} is missing",
                cause=f"{self._root} holds nothing under it",
                next_step="have the kernel compiled again, or copy the blob from the home that made it",
            ) from error
        if sha256_hex(content) != digest:
            raise self._wrong(digest, "the stored bytes have another SHA-256")
        return content

    def has(self, digest: str) -> bool:
        return self._path(digest).is_file()

    def _path(self, digest: str) -> Path:
        # A digest comes from a record; anything but 64 hexadecimal digits could name a path elsewhere.
        if not _DIGEST.fullmatch(digest):
            raise self._wrong(digest[:80], "it is not 64 hexadecimal digits")
        return self._root / digest[:2] / digest

    def _wrong(self, digest: str, cause: str) -> IntegrityError:
        return IntegrityError(
            f"blob {digest!r} of {self._root} is refused", cause=cause, next_step="remove it and have it made again"
        )


def _holds(path: Path, digest: str, size: int) -> bool:
    """Return whether the file already holds these bytes; a damaged one is to be written anew."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size == size and hashlib.file_digest(file, "sha256").hexdigest() == digest
    except FileNotFoundError:
        return False


def _write_atomically(target: Path, content: bytes) -> None:
    """Write beside the target, make it durable, rename: a reader sees all of it or nothing, also after a crash."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".new-")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _make_durable(target.parent)


def _make_durable(folder: Path) -> None:
    """Let a folder's new entries survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
