"""The blob store: what is read is what was written, or an error."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from esper.core.errors import IntegrityError
from esper.core.ids import sha256_hex
from esper.core.kernel import BlobMissing, DirectoryBlobStore


@pytest.fixture
def store(tmp_path: Path) -> DirectoryBlobStore:
    """Return a store in a folder that does not exist yet."""
    return DirectoryBlobStore(tmp_path / "blobs")


def stored_file(tmp_path: Path, digest: str) -> Path:
    """Return where the store keeps a blob."""
    return tmp_path / "blobs" / digest[:2] / digest


@pytest.mark.parametrize("content", [b"", b"x", b"weights" * 100_000])
def test_bytes_come_back(store: DirectoryBlobStore, content: bytes) -> None:
    """Put, ask, get, put again: the digest is SHA-256 and the bytes are the same."""
    assert not store.has(sha256_hex(content))
    digest = store.put(content)
    assert digest == sha256_hex(content)
    assert store.has(digest)
    assert store.put(content) == digest
    assert store.get(digest) == content


def test_missing_blob_says_so(store: DirectoryBlobStore) -> None:
    """Nothing stored is an error of its own kind: ask an empty store."""
    with pytest.raises(BlobMissing, match="missing"):
        store.get(sha256_hex(b"never stored"))


def test_damage_is_noticed_and_mended(store: DirectoryBlobStore, tmp_path: Path) -> None:
    """A flipped bit, a cut and a swap are refused, and storing the bytes again mends each."""
    content = b"weights of a kernel"
    digest = store.put(content)
    for damaged in (b"Weights of a kernel", content[:-1], b"", content + b"!"):
        stored_file(tmp_path, digest).write_bytes(damaged)
        with pytest.raises(IntegrityError, match="another SHA-256"):
            store.get(digest)
        store.put(content)
        assert store.get(digest) == content


def test_too_large_is_refused_before_reading(store: DirectoryBlobStore) -> None:
    """A reader says how much it takes: one byte more is refused."""
    digest = store.put(b"12345")
    assert store.get(digest, bytes_max=5) == b"12345"
    with pytest.raises(IntegrityError, match="at most 4"):
        store.get(digest, bytes_max=4)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", "/" + "a" * 63])
def test_name_must_be_a_digest(store: DirectoryBlobStore, name: str) -> None:
    """A name from a record cannot lead out of the folder: anything but 64 hexadecimal digits."""
    for question in (store.get, store.has):
        with pytest.raises(IntegrityError, match="64 hexadecimal"):
            question(name)


def test_failed_write_leaves_nothing(
    store: DirectoryBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a blob is never seen: let the disk fail before the rename."""

    def fail(_descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        store.put(b"content")
    monkeypatch.undo()
    assert not store.has(sha256_hex(b"content"))
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []


def test_writers_do_not_disturb_each_other(store: DirectoryBlobStore, tmp_path: Path) -> None:
    """Many may store the same at once: 40 writes of 4 blobs leave 4 whole files."""
    contents = [bytes([n]) * 50_000 for n in range(4)]
    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(store.put, contents * 10))
    assert digests == {sha256_hex(content) for content in contents}
    assert [store.get(sha256_hex(content)) for content in contents] == contents
    assert len([path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]) == 4
