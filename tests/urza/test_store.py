"""Verifying and collecting what is stored: any byte that is missing or wrong is found, nothing that is named goes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from google.protobuf.message import Message

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.errors import IntegrityError
from esper.core.ids import sha256_hex
from esper.core.kernel import (
    DirectoryBlobStore,
    KernelArtifact,
    RefusalTeller,
    get_artifact,
    put_artifact,
    verify_artifact,
)
from esper.karn import KarnCatalog
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.tezzeret import TezzeretCompiler
from esper.urza import (
    Inventory,
    Terms,
    UrzaRuntime,
    find_garbage,
    list_artifacts,
    remove_garbage,
    verify_artifacts,
)
from esper.urza._maintenance import StoreFacts, decide, eviction_id
from tests.conftest import RunningBroker
from tests.integration.driver import REPOSITORY
from tests.urza.harness import DEADLINE_SECONDS, forge, fresh_request, urza

HOME = "home-a"
HOUR_NS = 3_600_000_000_000
NOW_NS = SYSTEM_CLOCK.now_ns()
_IDS = itertools.count()


@dataclass
class Names:
    """What a log names; with each look, the next of the digests that somebody names meanwhile."""

    inventory: Inventory
    digests: set[str] = field(default_factory=set)
    meanwhile: list[str] = field(default_factory=list)

    def read(self) -> None:
        """Look again."""
        if self.meanwhile:
            self.digests.add(self.meanwhile.pop(0))


@dataclass
class Told:
    """A store with kernels in it, and the inventory of a log that tells of them."""

    root: Path
    inventory: Inventory = field(default_factory=Inventory)

    @property
    def store(self) -> DirectoryBlobStore:
        """Return the store."""
        return DirectoryBlobStore(self.root)

    def tell(self, message: Message, subject: str = "", append_time_ms: int = 0) -> str:
        """Fold an event about a kernel; return its id."""
        event_id = f"event-{next(_IDS)}"
        message.meta.CopyFrom(ly.EventMeta(event_id=event_id, subject=subject))  # type: ignore[attr-defined]  # every event has a meta
        self.inventory.fold(message, append_time_ms)
        return event_id

    def kernel(self, name: str = "", append_time_ms: int = 0) -> tuple[str, KernelArtifact]:
        """Compile, store and catalogue a kernel; return its artifact's name and the artifact."""
        artifact = TezzeretCompiler(KarnCatalog()).compile(fresh_request())
        manifest = artifact.manifest
        update = ly.KernelCatalogUpdate(
            kernel_id=name or manifest.kernel_id,
            blueprint_id="BP002",
            artifact_ref=put_artifact(self.store, artifact),
            checksum=manifest.weights_digest,
            guard_digest=manifest.guard_digest,
            manifest=manifest,
        )
        self.tell(update, name or manifest.kernel_id, append_time_ms)
        return update.artifact_ref, artifact

    def part(self, artifact_ref: str, kernel_id: str, *, forge: str = HOME) -> str:
        """Store and list a compiled part; return its digest."""
        content = f"machine code {next(_IDS)}".encode()
        part = ly.KernelPartCompiled(
            kernel_id=kernel_id, artifact_ref=artifact_ref, part_digest=sha256_hex(content), forge=forge
        )
        part.part_bytes, part.platform.threads = len(content), next(_IDS)
        self.tell(part, kernel_id)
        return self.store.put(content) if forge == HOME else part.part_digest

    def names(self, *digests: str, meanwhile: tuple[str, ...] = ()) -> Names:
        """Return what the log names."""
        return Names(self.inventory, set(digests), list(meanwhile))

    def path(self, digest: str) -> Path:
        """Return where a blob lies."""
        return self.root / digest[:2] / digest

    def age(self) -> None:
        """Let everything stored be two hours old."""
        for blob in self.store.blobs():
            os.utime(self.path(blob.digest), ns=(NOW_NS - 2 * HOUR_NS, NOW_NS - 2 * HOUR_NS))


@pytest.fixture
def told(tmp_path: Path) -> Told:
    """Return a store with two kernels, compiled parts of this and of another home, and a checkpoint."""
    told = Told(tmp_path / "blobs")
    for _ in range(2):
        artifact_ref, artifact = told.kernel()
        told.part(artifact_ref, artifact.manifest.kernel_id)
    told.part(artifact_ref, artifact.manifest.kernel_id, forge="home-b")
    told.tell(ly.CheckpointSaved(run_id="run-1", epoch=3, blob_digest=told.store.put(b"a checkpoint" * 100)))
    return told


def bad(told: Told, teller: RefusalTeller | None = None) -> list[tuple[str, str]]:
    """Return part and digest of each fault."""
    verdict = verify_artifacts(told.inventory, told.store, home_id=HOME, teller=teller)
    assert verdict.ok == (not verdict.bad)
    return [(fault.part, fault.digest) for fault in verdict.bad]


def test_a_sound_store_is_sound(told: Told) -> None:
    """Goal: no false alarm. Method: two kernels, parts of two homes and a checkpoint, all as they should be."""
    verdict = verify_artifacts(told.inventory, told.store, home_id=HOME)
    assert (verdict.ok, verdict.artifacts, verdict.blobs) == (True, 2, 9)
    assert verdict.bytes == sum(blob.size_bytes for blob in told.store.blobs())
    rows = list_artifacts(told.inventory, told.store)
    assert [(row["state"], row["compiled_parts"], row["layout"]) for row in rows] in (
        [("stored", 1, "vector"), ("stored", 2, "vector")],
        [("stored", 2, "vector"), ("stored", 1, "vector")],
    )


@pytest.mark.parametrize("damage", ["removed", "flipped", "truncated", "emptied", "grown", "swapped", "a link"])
def test_any_damage_to_any_blob_is_found(told: Told, damage: str) -> None:
    """Goal: nothing is lost or altered unnoticed. Method: one damage to each blob in turn, told once, then mended."""
    for blob in list(told.store.blobs()):
        path, honest = told.path(blob.digest), told.path(blob.digest).read_bytes()
        path.unlink()
        if damage == "a link":
            path.symlink_to(told.root / "elsewhere")
        elif damage != "removed":
            changed = {
                "flipped": honest[:-1] + bytes([honest[-1] ^ 1]),
                "truncated": honest[:-1],
                "emptied": b"",
                "grown": honest + b"\0",
                "swapped": b"x" * len(honest),
            }
            path.write_bytes(changed[damage])
        events: list[tuple[ly.KernelIntegrityFailed, str]] = []
        teller = RefusalTeller(lambda event, key, events=events: events.append((event, key)))  # type: ignore[misc]  # bound now
        for _ in range(2):
            assert [digest for _, digest in bad(told, teller)] == [blob.digest], f"{damage} {blob}"
        assert len(events) == 1
        path.unlink(missing_ok=True)
        path.write_bytes(honest)
    assert bad(told) == []


def test_every_single_byte_counts(told: Told) -> None:
    """Goal: any flipped byte. Method: flip each byte of one kernel's three blobs, one after the other."""
    update = next(iter(told.inventory.updates.values()))
    for digest in (update.artifact_ref, update.manifest.spec_digest, update.manifest.weights_digest):
        path = told.path(digest)
        honest = path.read_bytes()
        for at in range(0, len(honest), 7):
            path.write_bytes(honest[:at] + bytes([honest[at] ^ 0x20]) + honest[at + 1 :])
            assert [found for _, found in bad(told)] == [digest], at
        path.write_bytes(honest)


def test_an_entry_that_contradicts_itself_is_found(told: Told) -> None:
    """Goal: the catalogue is checked, too. Method: an update whose manifest is another's, with all bytes right."""
    name, update = next(iter(told.inventory.updates.items()))
    other = ly.KernelCatalogUpdate()
    other.CopyFrom(update)
    other.manifest.parameters += 1
    told.tell(other, name)
    assert [part for part, _ in bad(told)] == ["catalogue entry"]


def test_nothing_that_is_named_is_garbage(told: Told) -> None:
    """Goal: gc spares what runs, checkpoints, policies and the catalogue name. Method: all of it, old, and junk."""
    superseded, _ = told.kernel("kernel-x")
    kept_by_run, kept = told.kernel("kernel-y")
    told.kernel("kernel-x")
    told.kernel("kernel-y")
    told.tell(ly.CommandOutcome(run_id="run-1", epoch=1, kernel_digest=kept_by_run))
    policy = told.store.put(b"weights of a policy")
    junk = told.store.put(b"left by a crash before its event")
    told.age()
    young = told.store.put(b"stored just now, its event is on the way")
    garbage = find_garbage(told.names(policy), told.store, Terms(HOME, NOW_NS))
    gone = {blob.digest for blob in garbage.blobs}
    manifest = told.inventory.artifacts[superseded].manifest
    assert gone == {junk, superseded, manifest.spec_digest, manifest.weights_digest} - _shared(told, superseded)
    assert [update.artifact_ref for update in garbage.artifacts] == [superseded]
    assert not gone & {young, policy, kept_by_run, kept.manifest.weights_digest, kept.manifest.spec_digest}
    for digest in gone:
        assert told.store.remove(digest, stored_before_ns=NOW_NS - HOUR_NS)
    # The story's own names of kernels are not the digests that they should be; no byte is missing.
    assert {part for part, _ in bad(told)} == {"catalogue entry"}


def _shared(told: Told, artifact_ref: str) -> set[str]:
    """Return the parts of an artifact that others have, too: a spec does not hold what a kernel draws."""
    others = [update.manifest for ref, update in told.inventory.artifacts.items() if ref != artifact_ref]
    return {digest for each in others for digest in (each.spec_digest, each.weights_digest)}


def test_old_kernels_go_when_asked(told: Told) -> None:
    """Goal: what nobody grafted may expire. Method: one old, one young, one old that a run names; 30 days."""
    day_ms = 86_400_000
    old, _ = told.kernel("old", append_time_ms=NOW_NS // 1_000_000 - 31 * day_ms)
    young, _ = told.kernel("young", append_time_ms=NOW_NS // 1_000_000 - 29 * day_ms)
    used, _ = told.kernel("used", append_time_ms=NOW_NS // 1_000_000 - 31 * day_ms)
    told.tell(ly.CommandOutcome(run_id="run-1", epoch=1, kernel_digest=used))
    told.age()
    names = told.names()
    assert find_garbage(names, told.store, Terms(HOME, NOW_NS)).artifacts == ()
    garbage = find_garbage(names, told.store, Terms(HOME, NOW_NS, expired_days=30))
    references = {update.artifact_ref for update in garbage.artifacts}
    assert old in references
    assert not references & {young, used}


def test_what_is_stored_again_is_not_removed(told: Told) -> None:
    """Goal: bytes that somebody is about to name stay. Method: put an old blob again, then remove what was old."""
    digest = told.store.put(b"asked for again")
    told.age()
    told.store.put(b"asked for again")
    assert told.store.remove(digest, stored_before_ns=NOW_NS - HOUR_NS) is None
    assert told.store.has(digest)
    assert told.store.remove("0" * 64, stored_before_ns=NOW_NS) is None


def test_maintenance_says_once_what_is_gone() -> None:
    """Goal: one event for each loss. Method: fold it back, catalogue the kernel again, lose it again."""
    facts = StoreFacts()
    update = ly.KernelCatalogUpdate(artifact_ref="a" * 64, meta=ly.EventMeta(subject="k"))
    facts.fold(update)
    ((event_id, evicted),) = decide(facts, {"k": "weights"})
    assert (evicted.kernel_id, evicted.artifact_ref) == ("k", "a" * 64)
    assert evicted.reason == "missing: the store lacks its weights"
    assert decide(facts, {}) == []
    evicted.meta.event_id = event_id
    facts.fold(evicted)
    assert decide(facts, {"k": "weights"}) == []
    facts.fold(update)
    ((again, _),) = decide(facts, {"k": "spec"})
    assert again == eviction_id("k", facts.listed["k"]) != event_id


def test_what_was_removed_on_purpose_is_not_missed(told: Told) -> None:
    """Goal: gc and verify agree, while a loss is still a loss. Method: evict with either reason, then look."""
    name, update = next(iter(told.inventory.updates.items()))
    for digest in (update.artifact_ref, update.manifest.weights_digest):
        told.path(digest).unlink()
    assert {part for part, _ in bad(told)} == {"manifest"}
    event_id = eviction_id(name, told.inventory.facts.listed[name])
    for reason, faults, state in (("missing: the store lacks it", 1, "missing"), ("expired: old", 0, "removed")):
        evicted = ly.KernelEvicted(kernel_id=name, artifact_ref=update.artifact_ref, reason=reason)
        evicted.meta.event_id = event_id
        told.inventory.fold(evicted)
        assert len(bad(told)) == faults
        assert state in {row["state"] for row in list_artifacts(told.inventory, told.store)}


def test_a_kernel_of_a_run_is_looked_at_whole(told: Told) -> None:
    """Goal: a re-execution has what it needs. Method: a run names a kernel, another stands in its place, parts go."""
    named, artifact = told.kernel("kernel-x")
    told.tell(ly.CommandOutcome(run_id="run-1", epoch=1, kernel_digest=named))
    told.kernel("kernel-x")
    shared = _shared(told, named)
    for part in ("spec", "weights"):
        digest = getattr(artifact.manifest, f"{part}_digest")
        assert part == "spec" or digest not in shared
        told.path(digest).unlink()
        assert digest in {found for _, found in bad(told)}
        told.store.put(getattr(artifact, part))


def test_what_is_foreign_in_the_store_is_a_fault(told: Told) -> None:
    """Goal: nothing lies there unnoticed. Method: others' files, folders and links, each alone; a writer's is none."""
    root, digest = told.root, sha256_hex(b"elsewhere")

    def put(path: Path) -> Path:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        return path

    for name in ("ab/evil.pkl", "rootfile", f"zz/{digest}", f"00/{digest}", digest, "ab/\udcff", "ab/.new-x/y"):
        path = root / name
        path.parent.parent.mkdir(exist_ok=True)
        made = path.parent.exists()
        put(path)
        assert [part for part, _ in bad(told)] == ["foreign"], name
        path.unlink()
        if not made:
            path.parent.rmdir()
    for name in ("qq", f"{digest[:2]}/{digest}"):
        made = (root / name).parent.exists()
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to("/etc")
        assert [part for part, _ in bad(told)] == ["foreign"], name
        (root / name).unlink()
        if not made:
            (root / name).parent.rmdir()
    left = put(root / "ab" / ".new-left")
    verdict = verify_artifacts(told.inventory, told.store, home_id=HOME)
    assert (verdict.ok, verdict.leftovers) == (True, 1)
    left.unlink()
    elsewhere = root.with_name("elsewhere")
    root.replace(elsewhere)
    root.symlink_to(elsewhere)
    assert [part for part, _ in bad(told)] == ["foreign"]
    with pytest.raises(IntegrityError, match="a link lies"):
        find_garbage(told.names(), told.store, Terms(HOME, NOW_NS))


def test_a_folder_under_a_digest_stops_no_collection(told: Told, fabric: Fabric) -> None:
    """Goal: gc goes on, and removes nobody's folder. Method: an old one beside old junk and a dead writer's file."""
    folder, junk = told.path(sha256_hex(b"never")), told.store.put(b"junk")
    folder.mkdir(parents=True)
    left = folder.with_name(".new-left")
    left.write_bytes(b"x")
    told.age()
    for path in (folder, left):
        os.utime(path, ns=(1, 1))
    terms = Terms(HOME, NOW_NS)
    garbage = find_garbage(told.names(), told.store, terms)
    assert [blob.digest for blob in garbage.blobs] == [junk]
    with fabric.publisher("cli") as publisher:
        removed = remove_garbage(garbage, told.names(), told.store, publisher, terms)
    assert (removed.blobs, removed.failed, removed.artifacts) == ({junk: 4}, {}, [])
    assert (folder.is_dir(), left.exists()) == (True, False)
    assert bad(told) == [("foreign", folder.name)]


def evictions(fabric: Fabric, since: int) -> list[ly.KernelEvicted]:
    """Return the evictions that the log holds from an offset on."""
    with fabric.reader({("kernel-store", 0): since}) as reader:
        found = [event.message for event in reader.read_to_end()]
    return [message for message in found if isinstance(message, ly.KernelEvicted)]


def end_of(fabric: Fabric) -> int:
    """Return the offset after the last record of kernel-store."""
    return fabric.cluster.watermarks([("kernel-store", 0)])[("kernel-store", 0)][1]


def test_an_eviction_stands_for_bytes_that_are_gone(told: Told, fabric: Fabric) -> None:
    """Goal: no event lies. Method: three superseded kernels; one is fetched, one named after the look, one goes."""
    references = [told.kernel(name)[0] for name in ("fetched", "named", "gone")]
    fetched, named, gone = references
    for name in ("fetched", "named", "gone"):
        told.kernel(name)
    told.age()
    terms, since = Terms(HOME, NOW_NS), end_of(fabric)
    garbage = find_garbage(told.names(), told.store, terms)
    assert {update.artifact_ref for update in garbage.artifacts} == set(references)
    assert told.store.touch(fetched)
    with fabric.publisher("cli") as publisher:
        removed = remove_garbage(garbage, told.names(meanwhile=(named,)), told.store, publisher, terms)
    (event,) = evictions(fabric, since)
    assert (event.kernel_id, event.artifact_ref, event.freed_bytes) == ("gone", gone, removed.freed_bytes)
    assert gone in removed.blobs
    assert removed.artifacts == ["gone"]
    for reference in references:
        manifest = told.inventory.artifacts[reference].manifest
        digests = {reference, manifest.spec_digest, manifest.weights_digest} - _shared(told, reference)
        assert {told.store.has(digest) for digest in digests} == {reference != gone}


@pytest.mark.parametrize("reference", ["", "../../etc/passwd"])
def test_an_update_that_names_no_artifact_stops_no_collection(told: Told, fabric: Fabric, reference: str) -> None:
    """Goal: one record stops nobody. Method: catalogue an old kernel without an artifact's digest; list, collect."""
    told.tell(ly.KernelCatalogUpdate(kernel_id="odd", artifact_ref=reference), "odd")
    junk = told.store.put(b"junk")
    told.age()
    terms, since = Terms(HOME, NOW_NS, expired_days=30), end_of(fabric)
    garbage = find_garbage(told.names(), told.store, terms)
    with fabric.publisher("cli") as publisher:
        removed = remove_garbage(garbage, told.names(), told.store, publisher, terms)
    assert junk in removed.blobs
    for event in evictions(fabric, since):
        told.inventory.fold(event)
    assert {row["kernel_id"]: row["state"] for row in list_artifacts(told.inventory, told.store)}["odd"] == "removed"
    assert find_garbage(told.names(), told.store, terms).lost == ()


@pytest.mark.parametrize("noticed", [False, True])
def test_a_collection_that_died_is_told_by_the_next(told: Told, fabric: Fabric, noticed: bool) -> None:
    """Goal: killed between bytes and event, nothing is missed for ever. Method: remove without a word, collect, verify.

    `noticed`: maintenance said meanwhile that the bytes are missing.
    """
    day_ms = 86_400_000
    reference, _ = told.kernel(append_time_ms=NOW_NS // 1_000_000 - 31 * day_ms)
    name = told.inventory.artifacts[reference].meta.subject
    for update in told.inventory.updates.values():
        if update.artifact_ref != reference:
            told.inventory.catalogued_ms[update.meta.subject] = NOW_NS // 1_000_000
    told.age()
    told.path(reference).unlink()
    if noticed:
        ((event_id, said),) = decide(told.inventory.facts, {name: "manifest"})
        said.meta.event_id = event_id
        told.inventory.fold(said)
    assert bad(told) == [("manifest", reference)]
    terms, since = Terms(HOME, NOW_NS, expired_days=30), end_of(fabric)
    garbage = find_garbage(told.names(), told.store, terms)
    assert [update.artifact_ref for update in garbage.lost] == [reference]
    with fabric.publisher("cli") as publisher:
        remove_garbage(garbage, told.names(), told.store, publisher, terms)
    (event,) = evictions(fabric, since)
    assert (event.kernel_id, event.freed_bytes) == (name, 0)
    told.inventory.fold(event)
    assert bad(told) == []
    assert decide(told.inventory.facts, {name: "manifest"}) == [], "maintenance does not miss it either"
    assert find_garbage(told.names(), told.store, terms).lost == ()


#: Collects what is old in a home, expired kernels too, again and again, until its input ends.
COLLECTOR = """
import select, sys
from esper.core.clock import SYSTEM_CLOCK
from esper.core.kernel import DirectoryBlobStore
from esper.core.settings import load_settings
from esper.oona import Fabric
from esper.urza import LogNames, Terms, find_garbage, remove_garbage
with Fabric.open(load_settings(), member="gc") as fabric, LogNames(fabric) as names:
    publisher = fabric.publisher("cli")
    store = DirectoryBlobStore(fabric.home.blobs)
    names.read()
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        terms = Terms(fabric.home.home_id, SYSTEM_CLOCK.now_ns(), 0.0)
        removed = remove_garbage(find_garbage(names, store, terms), names, store, publisher, terms)
        for name in removed.artifacts:
            print(name, flush=True)
"""


def test_collecting_beside_a_forge_takes_nothing_that_was_handed_out(
    broker: RunningBroker, fabric: Fabric, record_property: pytest.RecordProperty
) -> None:
    """Goal: gc may run at any time. Method: age three kernels and fetch them while another process collects all.

    Every kernel has expired, so each round races with its removal; what a fetch returned is whole, and stays so.
    """
    requests = [fresh_request() for _ in range(3)]
    store, rounds = DirectoryBlobStore(fabric.home.blobs), 0
    told: set[str] = set()
    with urza(fabric), forge(fabric), collecting(broker) as collected:
        runtime = UrzaRuntime(fabric, store=store, publisher=fabric.publisher("kasmina"))
        deadline = Deadline(90.0)
        while (rounds < 10 or len(told) < 3) and not deadline.expired:
            fetched = [runtime.fetch_kernel(each, run_id="run-test", wait_seconds=60.0) for each in requests]
            for each in fetched:
                verify_artifact(get_artifact(store, each.artifact_ref))
            rounds += 1
            told |= collected() & {each.manifest.kernel_id for each in fetched}
            for digest in {digest for each in fetched for digest in (each.artifact_ref, each.manifest.weights_digest)}:
                with suppress(FileNotFoundError):
                    os.utime(store.root / digest[:2] / digest, ns=(NOW_NS - 2 * HOUR_NS, NOW_NS - 2 * HOUR_NS))
        runtime.close()
    record_property("rounds", rounds)
    record_property("collected", len(told))
    assert rounds >= 5
    assert told, "the collector took something of what was old"


@contextmanager
def collecting(broker: RunningBroker) -> Iterator[Callable[[], set[str]]]:
    """Let another process collect; yields what tells which kernels it has removed."""
    with tempfile.TemporaryFile("w+") as said:
        environment = broker.environment | {"ESPER_HOME": str(broker.home.root)}
        command = [sys.executable, "-c", COLLECTOR]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, env=environment, cwd=REPOSITORY)

        def removed() -> set[str]:
            said.seek(0)
            return set(said.read().split())

        deadline = Deadline(DEADLINE_SECONDS)
        while "ready" not in removed() and not deadline.expired:
            SYSTEM_CLOCK.sleep(0.05)
        try:
            yield removed
        finally:
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(DEADLINE_SECONDS) == 0
