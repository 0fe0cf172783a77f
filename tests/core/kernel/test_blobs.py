"""The blob store: what is read is what was written, or an error."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from esper.core.crash_points import CRASH_EXIT_CODE, CRASH_POINTS
from esper.core.errors import IntegrityError
from esper.core.ids import sha256_hex
from esper.core.kernel import BlobMissing, DirectoryBlobStore, get_artifact, manifest_digest, put_artifact
from esper.core.kernel._shards import locked
from tests.core.kernel.test_artifact import artifact

REPOSITORY = Path(__file__).parents[3]
RecordProperty = Callable[[str, object], None]


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
    with pytest.raises(IntegrityError, match="64 hexadecimal"):
        store.get(name)
    assert not store.has(name)


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
    died = subprocess.run(saving, cwd=REPOSITORY, env={**os.environ, "ESPER_CRASH_AT": place}, check=False)
    assert died.returncode == CRASH_EXIT_CODE
    store, made = DirectoryBlobStore(tmp_path / "blobs"), artifact()
    reference = manifest_digest(made.manifest)
    for blob in store.blobs():
        assert sha256_hex(store.get(blob.digest)) == blob.digest, "what lies at its place is whole"
    with pytest.raises(BlobMissing):
        get_artifact(store, reference)
    assert len(list(store.strays())) == (place == "store.written")
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
    assert store.remove(digest, stored_before_ns=1) is None
    for refresh in (lambda: store.put(b"content"), lambda: store.touch(digest)):
        os.utime(path, ns=(1, 1))
        assert refresh()
        assert store.remove(digest, stored_before_ns=2) is None
    os.utime(path, ns=(1, 1))
    assert store.remove(digest, stored_before_ns=2) == 7
    assert list(store.blobs()) == list(store.strays()) == []
    assert not store.touch(digest)
    assert store.remove(digest, stored_before_ns=2) is None


def test_a_removal_waits_for_who_makes_a_blob_young(store: DirectoryBlobStore, tmp_path: Path) -> None:
    """Goal: its age is judged when nobody changes it. Method: remove while a writer holds the lock; let it touch."""
    digest = store.put(b"content")
    path = stored_file(tmp_path, digest)
    os.utime(path, ns=(1, 1))
    with ThreadPoolExecutor(1) as pool:
        with locked(path.parent, alone=False):
            removal = pool.submit(store.remove, digest, stored_before_ns=2)
            assert not wait([removal], timeout=0.5).done
            os.utime(path)
        assert removal.result(60) is None
    assert store.get(digest) == b"content"


#: Stores a blob, makes it look old and stores it again, for some seconds; counts what was lost of what was promised.
WRITER = """
import os, sys, time
from pathlib import Path
from esper.core.kernel import BlobMissing, DirectoryBlobStore
root, kind, end = Path(sys.argv[1]), sys.argv[2], time.monotonic() + float(sys.argv[3])
store, content = DirectoryBlobStore(root), kind.encode() * 5_000
digest = store.put(content)
path, rounds, lost = root / digest[:2] / digest, 0, 0
while time.monotonic() < end:
    try:
        os.utime(path, ns=(1, 1))
    except FileNotFoundError:
        pass
    if kind == "put":
        store.put(content)
    elif not store.touch(digest):
        store.put(content)
        continue
    rounds += 1
    try:
        assert store.get(digest) == content
    except BlobMissing:
        lost += 1
print(rounds, lost)
"""
#: Removes two blobs whenever they look old, until it is killed.
COLLECTOR = """
import sys
from pathlib import Path
from esper.core.ids import sha256_hex
from esper.core.kernel import DirectoryBlobStore
store, removed = DirectoryBlobStore(Path(sys.argv[1])), 0
digests = [sha256_hex(kind * 5_000) for kind in (b"put", b"touch")]
while True:
    for digest in digests:
        if store.remove(digest, stored_before_ns=2):
            print("removed", flush=True)
"""


def test_what_was_put_or_touched_is_there_whoever_collects(tmp_path: Path, record_property: RecordProperty) -> None:
    """Goal: no promise is broken. Method: one process puts and one touches what looks old, one removes it; kill it."""
    root = tmp_path / "blobs"
    found: dict[str, list[int]] = {}
    with (tmp_path / "removed").open("w+") as said:
        collector = subprocess.Popen([sys.executable, "-c", COLLECTOR, str(root)], stdout=said, cwd=REPOSITORY)
        writers = {
            kind: subprocess.Popen(
                [sys.executable, "-c", WRITER, str(root), kind, "4"], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
            )
            for kind in ("put", "touch")
        }
        for kind, writer in writers.items():
            out, _ = writer.communicate(timeout=120)
            assert writer.returncode == 0
            found[kind] = [int(word) for word in out.split()]
        collector.kill()
        collector.wait()
        said.seek(0)
        removed = len(said.readlines())
    record_property("rounds", found)
    record_property("removed", removed)
    for kind, (rounds, lost) in found.items():
        assert rounds > 20, kind
        assert lost == 0, kind
    assert removed > 20
    # A collector that was killed holds no lock and has left nothing.
    assert DirectoryBlobStore(root).put(b"more")
    assert list(DirectoryBlobStore(root).strays()) == []


@pytest.mark.parametrize("inside", [False, True])
def test_a_folder_where_a_blob_belongs_is_moved_aside(store: DirectoryBlobStore, tmp_path: Path, inside: bool) -> None:
    """Goal: storing heals. Method: put a folder, empty or not, where a blob belongs, then the blob; nothing is lost."""
    path = stored_file(tmp_path, sha256_hex(b"content"))
    path.mkdir(parents=True)
    if inside:
        (path / "somebody's").write_text("work")
    digest = store.put(b"content")
    assert store.get(digest) == b"content"
    (stray,) = store.strays()
    assert not stray.leftover
    assert [each.name for each in stray.path.iterdir()] == ["somebody's"] * inside


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_what_is_no_file_is_no_blob_and_is_not_removed(store: DirectoryBlobStore, tmp_path: Path, kind: str) -> None:
    """Goal: the collector stumbles over nothing. Method: other things under a digest's name, old; list and remove."""
    digest = store.put(b"content")
    path = stored_file(tmp_path, digest)
    path.unlink()
    {"folder": path.mkdir, "link": lambda: path.symlink_to("/etc"), "pipe": lambda: os.mkfifo(path)}[kind]()
    os.utime(path, ns=(1, 1), follow_symlinks=False)
    assert list(store.blobs()) == []
    assert store.remove(digest, stored_before_ns=1 << 62) is None
    assert [(stray.path, stray.leftover) for stray in store.strays(before_ns=2)] == [(path, False)]
    assert path.is_dir() == (kind != "pipe")


def test_a_large_file_is_read_in_pieces(store: DirectoryBlobStore, tmp_path: Path) -> None:
    """Goal: checking costs no memory. Method: swap a blob for one of 64 MiB, check it, look at the peak of memory."""
    digest = store.put(b"content")
    assert store.check(digest) == 7
    os.truncate(stored_file(tmp_path, digest), 64 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError, match="another SHA-256"):
            store.check(digest)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    os.truncate(stored_file(tmp_path, digest), (1 << 32) + 1)
    with pytest.raises(IntegrityError, match="at most"):
        store.check(digest)


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_store_must_be_a_folder(tmp_path: Path, kind: str) -> None:
    """Goal: nobody takes a lost store for an empty one. Method: a link and a file in its place; none is sound."""
    root = tmp_path / "blobs"
    DirectoryBlobStore(root).check_root()
    (tmp_path / "elsewhere").mkdir()
    root.symlink_to(tmp_path / "elsewhere") if kind == "link" else root.write_text("")
    with pytest.raises(IntegrityError, match=f"a {kind} lies"):
        DirectoryBlobStore(root).check_root()
