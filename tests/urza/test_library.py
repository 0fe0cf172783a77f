"""The library: what it keeps, when it spares the store, and whom it gives what people said of blueprints."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from esper.core.clock import Deadline, ManualClock
from esper.core.kernel import (
    ArtifactRefused,
    BlobMissing,
    DirectoryBlobStore,
    KernelArtifact,
    RefusalTeller,
    canonical_json,
    make_artifact,
    manifest_bytes,
    put_artifact,
)
from esper.core.kernel._blobs import BLOB_BYTES_MAX
from esper.core.ports import KernelUnavailable
from esper.karn import KarnCatalog
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.tezzeret import TezzeretCompiler
from esper.urza import ArtifactCache, StoreSpared, UrzaLibrary, UrzaMaintenance, UrzaRuntime, library_metrics
from esper.urza._cache import OpenedArtifact
from esper.urza._catalog import KernelEntry, fold_entry
from esper.urza._requests import SOURCE
from tests.urza.harness import DEADLINE_SECONDS, Log, fresh_request, urza

WITHDRAWN, WAITS, RISKY = "BP901", "BP902", "BP903"


@dataclass
class SlowStore:
    """A real store on a disk that takes its time, by the clock of the test, or fails."""

    store: DirectoryBlobStore
    clock: ManualClock
    seconds: float = 0.0
    broken: bool = False
    asked: int = 0

    def put(self, content: bytes) -> str:
        """Store."""
        return self.store.put(content)

    def get(self, digest: str, *, bytes_max: int = BLOB_BYTES_MAX) -> bytes:
        """Read, slowly."""
        self.asked += 1
        self.clock.advance(self.seconds)
        if self.broken:
            cause = OSError(errno.EIO, "Input/output error")
            raise BlobMissing(f"blob {digest} cannot be read", cause="Input/output error") from cause
        return self.store.get(digest, bytes_max=bytes_max)

    def has(self, digest: str) -> bool:
        """Look."""
        return self.store.has(digest)

    def touch(self, digest: str) -> bool:
        """Make young."""
        return self.store.touch(digest)


@dataclass
class Bench:
    """A library over a slow store, with a clock that a test moves."""

    root: Path
    clock: ManualClock = field(default_factory=ManualClock)
    told: list[ly.KernelIntegrityFailed] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = SlowStore(DirectoryBlobStore(self.root), self.clock)
        self.metrics = library_metrics("kasmina")
        self.cache: ArtifactCache[OpenedArtifact] = ArtifactCache(seconds=60, clock=self.clock)
        self.library = UrzaLibrary(
            self.store,  # type: ignore[arg-type]  # its digests are plain text
            metrics=self.metrics,
            teller=RefusalTeller(lambda event, _key: self.told.append(event)),
            cache=self.cache,
            slow_seconds=0.25,
            clock=self.clock,
        )

    def kernel(self) -> tuple[str, KernelArtifact]:
        """Store a new kernel; return its name and itself."""
        artifact = TezzeretCompiler(KarnCatalog()).compile(fresh_request())
        return put_artifact(self.store.store, artifact), artifact

    def figure(self, name: str) -> float:
        """Return what `urza.library.<name>` stands at."""
        return self.metrics.value(f"urza.library.{name}")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Return a bench in a folder of the test's."""
    return Bench(tmp_path / "blobs")


def test_what_was_opened_is_kept_for_a_while(bench: Bench) -> None:
    """Goal: one read serves many fetches, and not for ever. Method: open twice, and again after the time to live."""
    reference, artifact = bench.kernel()
    first = bench.library.open(reference, artifact.manifest.kernel_id)
    reads = bench.store.asked
    assert bench.library.open(reference, None) is first
    assert bench.store.asked == reads == 3
    bench.clock.advance(61)
    assert bench.library.open(reference, None) is not first
    assert bench.store.asked == 2 * reads
    bench.clock.advance(61)
    bench.library.maintain()
    assert len(bench.cache) == 0
    assert (bench.figure("cache_hits"), bench.figure("cache_misses"), bench.figure("evictions")) == (1, 2, 2)


def test_a_fresh_look_finds_what_happened_since(bench: Bench) -> None:
    """Goal: whoever hands a kernel to others looks at the bytes. Method: open, damage the store, open both ways."""
    reference, artifact = bench.kernel()
    bench.library.open(reference, None)
    path = bench.root / artifact.manifest.spec_digest[:2] / artifact.manifest.spec_digest
    path.write_bytes(b"{}")
    assert bench.library.open(reference, None).manifest == artifact.manifest
    for _ in range(2):
        with pytest.raises(ArtifactRefused) as caught:
            bench.library.open(reference, "", fresh=True)
        assert caught.value.part == "spec"
    assert [event.part for event in bench.told] == ["spec"]
    assert bench.figure("integrity_failures") == 2


def test_what_is_handed_out_is_young_and_there(bench: Bench) -> None:
    """Goal: nobody collects what is about to be named. Method: age a kernel, open it, from the cache too; remove it."""
    reference, artifact = bench.kernel()
    name, digests = artifact.manifest.kernel_id, (reference, artifact.manifest.spec_digest)
    for _ in range(2):
        for digest in digests:
            os.utime(bench.root / digest[:2] / digest, ns=(1, 1))
        bench.library.open(reference, name)
        assert [bench.store.store.remove(digest, stored_before_ns=2) for digest in digests] == [None, None]
    assert bench.store.asked == 3
    # What a run names already is served out of the cache; who is to name it must be able to.
    assert bench.store.store.remove(reference, stored_before_ns=1 << 62)
    assert bench.library.open(reference, None).manifest == artifact.manifest
    with pytest.raises(BlobMissing):
        bench.library.open(reference, name)


def test_half_characters_are_refused_told_and_no_fault_of_the_store(bench: Bench) -> None:
    """Goal: hostile text harms nobody else. Method: a manifest and a spec with lone surrogates, opened four times."""
    _, artifact = bench.kernel()
    fields = json.loads(manifest_bytes(artifact.manifest))
    written = json.dumps(fields | {"spec_digest": "\ud800"}, sort_keys=True, separators=(",", ":"))
    named = bench.store.put(written.encode())
    spec = artifact.spec.replace(b'"in_shape":[5]', b'"in_shape":"\\ud800"')
    assert spec != artifact.spec
    forged = fields | {"spec_digest": bench.store.put(spec), "spec_bytes": len(spec)}
    for _ in range(4):
        for reference in (named, bench.store.put(canonical_json(forged))):
            with pytest.raises(ArtifactRefused):
                bench.library.open(reference, None)
    assert [event.part for event in bench.told] == ["manifest", "spec"]
    assert not bench.library.conservative


@pytest.mark.parametrize("trouble", ["slow", "broken"])
def test_a_slow_store_is_spared(bench: Bench, trouble: str) -> None:
    """Goal: nobody waits for a bad disk again and again. Method: three slow answers, a refusal, a probe, recovery."""
    known, _ = bench.kernel()
    bench.library.open(known, None)
    bench.store.seconds, bench.store.broken = (0.1, False) if trouble == "slow" else (0.0, True)
    for _ in range(3):
        reference, _ = bench.kernel()
        if trouble == "broken":
            with pytest.raises(BlobMissing):
                bench.library.open(reference, None)
        else:
            bench.library.open(reference, None)
    assert bench.library.conservative
    assert (bench.figure("conservative_mode"), bench.figure("breaker_state")) == (1, ly.CIRCUIT_STATE_OPEN)
    assert bench.figure("slow_queries") == (3 if trouble == "slow" else 0)
    reads = bench.store.asked
    reference, _ = bench.kernel()
    with pytest.raises(StoreSpared, match="tried again in 30 s"):
        bench.library.open(reference, None)
    assert bench.library.open(known, None, fresh=True).manifest, "what is held is served"
    assert bench.store.asked == reads
    bench.store.seconds, bench.store.broken = 0.0, False
    bench.clock.advance(30)
    bench.library.open(reference, None)
    assert not bench.library.conservative
    assert (bench.figure("conservative_mode"), bench.figure("breaker_state")) == (0, ly.CIRCUIT_STATE_CLOSED)


def test_wrong_bytes_do_not_open_the_breaker(bench: Bench) -> None:
    """Goal: a bad caller or artifact spares nobody the store. Method: ten refusals and ten missing, then a good one."""
    other, _ = bench.kernel()
    for _ in range(10):
        with pytest.raises(ArtifactRefused):
            bench.library.open(other, "another kernel")
        with pytest.raises(BlobMissing):
            bench.library.open("0" * 64, None)
        with pytest.raises(ArtifactRefused):
            bench.library.open("../../etc/passwd", None)
    assert not bench.library.conservative


def test_latency_comes_with_the_end_of_the_job() -> None:
    """Goal: figures belong to the artifact they were taken of. Method: fold ends of this and of another artifact."""
    meta = ly.EventMeta(subject="k", causation_id="job")
    entry = fold_entry(KernelEntry(), ly.KernelCatalogUpdate(meta=meta, artifact_ref="a"))
    assert entry.prewarm is None
    prewarm = ly.LatencyFigures(samples=50, p50_ms=0.5, p95_ms=0.75)
    foreign = fold_entry(entry, ly.CompileFinished(meta=meta, artifact_ref="b", prewarm=prewarm))
    assert foreign.prewarm is None
    measured = fold_entry(entry, ly.CompileFinished(meta=meta, artifact_ref="a", prewarm=prewarm))
    assert measured.prewarm == prewarm
    assert fold_entry(measured, ly.KernelCatalogUpdate(artifact_ref="a")).prewarm == prewarm
    assert fold_entry(measured, ly.KernelCatalogUpdate(artifact_ref="c")).prewarm is None


@pytest.fixture(scope="module")
def decided() -> set[str]:
    """Say once per session's broker what people decided; return which brokers were told."""
    return set()


def decide_blueprints(fabric: Fabric, decided: set[str]) -> None:
    """Register three blueprints of the test's own: one withdrawn, one that waits for approval, one for quarantine."""
    if fabric.bootstrap in decided:
        return
    decided.add(fabric.bootstrap)
    tiers = {
        WITHDRAWN: ly.BLUEPRINT_TIER_SAFE,
        WAITS: ly.BLUEPRINT_TIER_EXPERIMENTAL,
        RISKY: ly.BLUEPRINT_TIER_HIGH_RISK,
    }
    with fabric.publisher("karn") as karn, fabric.publisher("cli") as cli:
        for name, tier in tiers.items():
            descriptor = ly.BlueprintDescriptor(blueprint_id=name, name="a test's", tier=tier, layouts=["vector"])
            karn.publish(ly.BlueprintRegistered(descriptor=descriptor, descriptor_digest="1" * 64), key=name)
        cli.publish(ly.BlueprintWithdrawn(blueprint_id=WITHDRAWN, withdrawn_by="ada", reason="no"), key=WITHDRAWN)


def catalogued(fabric: Fabric, blueprint_id: str) -> Log:
    """Put a kernel of this blueprint into store and catalogue, as if a forge had made it; return its log."""
    request = fresh_request()
    artifact = TezzeretCompiler(KarnCatalog()).compile(request)
    request.blueprint_id = blueprint_id
    artifact = make_artifact(request, json.loads(artifact.spec))
    log = Log(fabric, request)
    update = ly.KernelCatalogUpdate(
        kernel_id=log.name,
        blueprint_id=blueprint_id,
        artifact_ref=put_artifact(DirectoryBlobStore(fabric.home.blobs), artifact),
        checksum=artifact.manifest.weights_digest,
        guard_digest=artifact.manifest.guard_digest,
        manifest=artifact.manifest,
    )
    log.publish(update, source="tezzeret")
    return log


@pytest.mark.parametrize(
    ("blueprint_id", "refusal", "has_artifact"),
    [(WITHDRAWN, "withdrawn", False), (WAITS, "approval_required", True), (RISKY, "quarantine_only", True)],
)
def test_what_may_not_be_grafted_has_no_module(
    fabric: Fabric, decided: set[str], blueprint_id: str, refusal: str, has_artifact: bool
) -> None:
    """Goal: the log's word reaches whoever grafts. Method: fetch catalogued kernels of three refused blueprints."""
    decide_blueprints(fabric, decided)
    log = catalogued(fabric, blueprint_id)
    runtime = UrzaRuntime(fabric, store=DirectoryBlobStore(fabric.home.blobs))
    fetched = runtime.fetch_kernel(log.request, run_id="run-1", wait_seconds=30)
    assert (fetched.module, fetched.refusal, fetched.artifact is not None) == (None, refusal, has_artifact)
    assert fetched.descriptor is not None
    assert fetched.descriptor.blueprint_id == blueprint_id
    # A recorded run grafts what it grafted, whatever was said since.
    assert runtime.fetch_by_digest(fetched.artifact_ref).module is not None


def test_urza_answers_for_withdrawn_blueprints_with_the_reason(fabric: Fabric, decided: set[str]) -> None:
    """Goal: a withdrawal is heard at once. Method: request a withdrawn kernel and one that waits for approval."""
    decide_blueprints(fabric, decided)
    withdrawn, waits = catalogued(fabric, WITHDRAWN), catalogued(fabric, WAITS)
    for log in (withdrawn, waits):
        log.prefetch()
    with urza(fabric):
        (error,) = withdrawn.wait(ly.KernelArtifactError)
        waits.wait(ly.KernelArtifactReady)
    assert error.reason.startswith("withdrawn: ada withdrew")
    assert withdrawn.of(ly.CompileRequested) == []


def test_ready_says_how_long_the_kernel_takes(fabric: Fabric) -> None:
    """Goal: p50 and p95 reach whoever asked. Method: a catalogued kernel whose forge measured it, then a request."""
    log = catalogued(fabric, "BP002")
    update = log.of(ly.KernelCatalogUpdate)[0]
    prewarm = ly.LatencyFigures(samples=200, p50_ms=0.125, p95_ms=0.25, batch=32)
    finished = ly.CompileFinished(kernel_id=log.name, artifact_ref=update.artifact_ref, prewarm=prewarm)
    log.publish(finished, source="tezzeret", causation_id="job")
    log.prefetch()
    with urza(fabric):
        (ready,) = log.wait(ly.KernelArtifactReady)
    assert ready.prewarm == prewarm


def test_missing_bytes_are_told_of_once(fabric: Fabric) -> None:
    """Goal: the catalogue says what cannot be fetched. Method: lose a kernel's weights, maintain twice."""
    log = catalogued(fabric, "BP002")
    (update,) = log.of(ly.KernelCatalogUpdate)
    digest = update.manifest.weights_digest
    (fabric.home.blobs / digest[:2] / digest).unlink()
    maintenance = UrzaMaintenance(fabric, store=DirectoryBlobStore(fabric.home.blobs))
    mine = [event for event in maintenance.once() if event.kernel_id == log.name]
    assert [event.reason for event in mine] == ["missing: the store lacks its weights"]
    assert [event for event in maintenance.once() if event.kernel_id == log.name] == []
    with fabric.reader({("kernel-store", 0): "begin"}) as reader:
        events = [event for event in reader.read_to_end() if event.meta.subject == log.name]
    assert [type(event.message) for event in events] == [ly.KernelEvicted]
    assert events[0].meta.source == SOURCE


def test_urza_emits_its_metrics(fabric: Fabric) -> None:
    """Goal: the brief's figures reach the log. Method: a hit and a refusal through the member, then its telemetry."""
    log = catalogued(fabric, "BP002")
    log.prefetch()
    bad = log.prefetch(kernel_id="0" * 64)
    with fabric.reader({("telemetry", 0): "end"}) as reader:
        with urza(fabric):
            log.wait(ly.KernelArtifactReady)
            log.wait(ly.KernelArtifactError)
        deadline, found = Deadline(DEADLINE_SECONDS), {}
        while "urza.prefetch.hits" not in found:
            assert not deadline.expired
            for event in reader.read(0.5):
                if isinstance(event.message, ly.TelemetryPacket) and event.meta.source == "urza":
                    found |= {point.name: point.value for point in event.message.metrics}
    assert bad
    assert found["urza.prefetch.hits"] >= 1
    assert found["urza.prefetch.errors"] >= 1
    assert found["urza.prefetch.latency_ms"] > 0
    assert found["urza.library.breaker_state"] == ly.CIRCUIT_STATE_CLOSED
    assert {"urza.prefetch.misses", "urza.library.cache_hits", "urza.library.integrity_failures"} <= found.keys()


def test_a_spared_store_is_a_reason(fabric: Fabric) -> None:
    """Goal: a seed hears why there is no kernel. Method: a store that fails until it is spared, then a fetch."""
    clock = ManualClock()
    store = SlowStore(DirectoryBlobStore(fabric.home.blobs), clock, broken=True)
    log = catalogued(fabric, "BP002")
    runtime = UrzaRuntime(fabric, store=store)  # type: ignore[arg-type]  # its digests are plain text
    reasons = []
    for _ in range(4):
        with pytest.raises(KernelUnavailable) as caught:
            runtime.fetch_kernel(log.request, run_id="run-1", wait_seconds=30)
        reasons.append(caught.value.reason)
    assert reasons == ["not_in_catalogue"] * 3 + ["store_spared"]
