"""The blob store: what is read is what was written, or an error."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from esper.core.crash_points import CRASH_EXIT_CODE, CRASH_POINTS
from esper.core.errors import IntegrityError
from esper.core.ids import sha256_hex
from esper.core.kernel import BlobMissing, DirectoryBlobStore, get_artifact, manifest_digest, put_artifact
from tests.core.kernel.test_artifact import artifact


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


#: Stores an artifact in a folder, and dies where it is told to.
SAVING = """
import sys
from pathlib import Path
from esper.core.kernel import DirectoryBlobStore, put_artifact
from tests.core.kernel.test_artifact import artifact
put_artifact(DirectoryBlobStore(Path(sys.argv[1])), artifact())
"""


@pytest.mark.parametrize("place", sorted(name for name in CRASH_POINTS if name.startswith("store.")))
def test_a_save_that_dies_leaves_nothing_or_a_whole(place: str, tmp_path: Path) -> None:
    """Goal: no half kernel, ever. Method: die at each step of a save, look, save again over what is left, look."""
    saving = [sys.executable, "-c", SAVING, str(tmp_path / "blobs")]
    repository = Path(__file__).parents[3]
    died = subprocess.run(saving, cwd=repository, env={**os.environ, "ESPER_CRASH_AT": place}, check=False)
    assert died.returncode == CRASH_EXIT_CODE
    store, made = DirectoryBlobStore(tmp_path / "blobs"), artifact()
    reference = manifest_digest(made.manifest)
    for blob in store.blobs():
        assert sha256_hex(store.get(blob.digest)) == blob.digest, "what lies at its place is whole"
    with pytest.raises(BlobMissing):
        get_artifact(store, reference)
    assert len(list(store.strays(before_ns=1 << 62))) == (place == "store.written")
    put_artifact(store, made)
    assert get_artifact(store, reference) == made
    assert len(list(store.blobs())) == 3


@pytest.mark.parametrize("way", ["link", "link to a link", "pipe", "folder", "folder of it a link"])
def test_only_plain_files_are_read(store: DirectoryBlobStore, tmp_path: Path, way: str) -> None:
    """Goal: the store leads nowhere else and hangs nobody. Method: put other things where a blob lay."""
    digest = store.put(b"content")
    path, elsewhere = stored_file(tmp_path, digest), tmp_path / "elsewhere"
    if way == "folder of it a link":
        path.parent.replace(elsewhere)
        path.parent.symlink_to(elsewhere)
    else:
        path.replace(elsewhere)
        makers = {
            "link": lambda: path.symlink_to(elsewhere),
            "link to a link": lambda: path.symlink_to(path.name),
            "pipe": lambda: os.mkfifo(path),
            "folder": path.mkdir,
        }
        makers[way]()
        assert not store.has(digest)
    with pytest.raises(IntegrityError, match="refused"):
        store.get(digest)


def test_what_is_stored_again_is_young_again(store: DirectoryBlobStore, tmp_path: Path) -> None:
    """Goal: nobody removes what is about to be named. Method: age a blob, put it again, remove what is old."""
    digest = store.put(b"content")
    path = stored_file(tmp_path, digest)
    os.utime(path, ns=(1, 1))
    assert store.remove(digest, stored_before_ns=1) == 0
    assert store.put(b"content") == digest
    assert store.remove(digest, stored_before_ns=2) == 0
    os.utime(path, ns=(1, 1))
    assert store.remove(digest, stored_before_ns=2) == 7
    assert list(store.blobs()) == list(store.strays(before_ns=1 << 62)) == []


def test_writers_and_the_collector_at_once(store: DirectoryBlobStore, tmp_path: Path) -> None:
    """Goal: a blob that was put is there. Method: remove what looks old while eight threads put it and make it old."""
    digest = store.put(b"content")

    def put(_number: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.utime(stored_file(tmp_path, digest), ns=(1, 1))
        store.put(b"content")

    with ThreadPoolExecutor(8) as pool:
        puts = [pool.submit(put, number) for number in range(200)]
        while not all(each.done() for each in puts):
            store.remove(digest, stored_before_ns=2)
    assert store.put(b"content") == digest
    assert store.get(digest) == b"content"
