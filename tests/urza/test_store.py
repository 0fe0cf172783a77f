"""Verifying and collecting what is stored: any byte that is missing or wrong is found, nothing that is named goes."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from google.protobuf.message import Message

from esper.core.clock import SYSTEM_CLOCK
from esper.core.ids import sha256_hex
from esper.core.kernel import DirectoryBlobStore, KernelArtifact, RefusalTeller, put_artifact
from esper.karn import KarnCatalog
from esper.leyline import messages as ly
from esper.tezzeret import TezzeretCompiler
from esper.urza import Inventory, find_garbage, list_artifacts, verify_artifacts
from esper.urza._maintenance import StoreFacts, decide, eviction_id
from tests.urza.harness import fresh_request

HOME = "home-a"
HOUR_NS = 3_600_000_000_000
NOW_NS = SYSTEM_CLOCK.now_ns()
_IDS = itertools.count()


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
    garbage = find_garbage(told.inventory, told.store, {policy}, home_id=HOME, now_ns=NOW_NS)
    gone = {blob.digest for blob in garbage.blobs}
    manifest = told.inventory.artifacts[superseded].manifest
    assert gone == {junk, superseded, manifest.spec_digest, manifest.weights_digest} - _shared(told, superseded)
    assert [update.artifact_ref for update in garbage.artifacts] == [superseded]
    assert not gone & {young, policy, kept_by_run, kept.manifest.weights_digest, kept.manifest.spec_digest}
    for digest in gone:
        assert told.store.remove(digest, stored_before_ns=NOW_NS - HOUR_NS) > 0
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
    arguments = {"home_id": HOME, "now_ns": NOW_NS}
    assert find_garbage(told.inventory, told.store, (), **arguments).artifacts == ()  # type: ignore[arg-type]  # as named
    garbage = find_garbage(told.inventory, told.store, (), **arguments, expired_days=30)  # type: ignore[arg-type]  # as named
    references = {update.artifact_ref for update in garbage.artifacts}
    assert old in references
    assert not references & {young, used}


def test_what_is_stored_again_is_not_removed(told: Told) -> None:
    """Goal: bytes that somebody is about to name stay. Method: put an old blob again, then remove what was old."""
    digest = told.store.put(b"asked for again")
    told.age()
    told.store.put(b"asked for again")
    assert told.store.remove(digest, stored_before_ns=NOW_NS - HOUR_NS) == 0
    assert told.store.has(digest)
    assert told.store.remove("0" * 64, stored_before_ns=NOW_NS) == 0


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
