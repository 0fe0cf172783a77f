"""Copies of the blobs that records name by digest: into the archive, and back into a home."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from esper.core.errors import IntegrityError
from esper.core.ids import digests_in
from esper.projection.archive._layout import whole_file

#: Only small blobs are searched for names of others: manifests are, weights are not.
_SEARCHED_BYTES_MAX: Final = 1024 * 1024
_CHUNK_BYTES: Final = 1024 * 1024


def blob_path(root: Path, digest: str) -> Path:
    """Return where a blob lies in a store, as `DirectoryBlobStore` lays them out."""
    return root / digest[:2] / digest


def named_blobs(names: Iterable[str], store: Path) -> set[str]:
    """Return those of `names` that the store holds, and those that small ones among them name."""
    found: set[str] = set()
    queue = sorted(set(names))
    while queue:  # ends: no name is taken twice, and the store is finite
        name = queue.pop()
        path = blob_path(store, name)
        if name in found or not path.is_file():
            continue
        found.add(name)
        if path.stat().st_size <= _SEARCHED_BYTES_MAX:
            queue += digests_in(path.read_bytes())
    return found


def copy_blobs(digests: Iterable[str], source: Path, target: Path) -> int:
    """Copy what `target` lacks; return how many there were to copy.

    Raises:
        IntegrityError: a blob of `source` is missing, or not what its name says.
        OSError: `target` cannot be written.
    """
    copied = 0
    for digest in sorted(set(digests)):
        path = blob_path(target, digest)
        if not holds_blob(target, digest):
            _copy(blob_path(source, digest), path, digest)
            copied += 1
    return copied


def holds_blob(store: Path, digest: str) -> bool:
    """Return whether a store holds a blob with the bytes that its name says."""
    try:
        with blob_path(store, digest).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except FileNotFoundError:
        return False


def _copy(source: Path, target: Path, digest: str) -> None:
    hashed = hashlib.sha256()
    try:
        with source.open("rb") as read, whole_file(target) as written:
            while chunk := read.read(_CHUNK_BYTES):
                hashed.update(chunk)
                written.write(chunk)
            if hashed.hexdigest() != digest:
                raise _wrong(source, "its bytes have another SHA-256")
    except FileNotFoundError as error:
        raise _wrong(source, "it is not there") from error


def _wrong(path: Path, cause: str) -> IntegrityError:
    return IntegrityError(
        f"blob {path} cannot be copied",
        cause=cause,
        next_step="Put it back from a copy, or remove it and have it made again",
    )
