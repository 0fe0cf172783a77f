"""Urza on the real broker: from a request to a kernel in hand, and every way in which there is none."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from google.protobuf.timestamp_pb2 import Timestamp

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.errors import IntegrityError
from esper.core.kernel import DirectoryBlobStore, KernelArtifact, load_kernel, make_artifact, put_artifact
from esper.core.ports import BlueprintRuntime, KernelUnavailable
from esper.karn import KarnCatalog, catalogue
from esper.leyline import EventMessage, Record
from esper.leyline import messages as ly
from esper.oona import Fabric, list_dead_letters
from esper.tezzeret import TezzeretCompiler
from esper.urza import ArtifactCache, UrzaRuntime, build_service
from esper.urza._catalog import KernelEntry
from esper.urza._requests import compile_id
from tests.oona.log import append, signed_record
from tests.urza.harness import DEADLINE_SECONDS, Log, forge, fresh_request, running, urza

WAIT = DEADLINE_SECONDS


@pytest.fixture
def log(fabric: Fabric) -> Log:
    """Return the log of a kernel that is new."""
    return Log(fabric, fresh_request())


@pytest.fixture
def members(fabric: Fabric) -> Iterator[None]:
    """Run Urza and the forge during a test."""
    with urza(fabric), forge(fabric):
        yield


@pytest.fixture
def store(fabric: Fabric) -> DirectoryBlobStore:
    """Return the home's blob store."""
    return DirectoryBlobStore(fabric.home.blobs)


@pytest.fixture
def runtime(fabric: Fabric, store: DirectoryBlobStore) -> UrzaRuntime:
    """Return the runtime of a worker that may ask for kernels."""
    return UrzaRuntime(fabric, store=store, publisher=fabric.publisher("kasmina"))


def blob(fabric: Fabric, digest: str) -> Path:
    """Return the file of a blob of the home."""
    return fabric.home.blobs / digest[:2] / digest


@pytest.mark.usefixtures("members")
def test_from_request_to_kernel(runtime: UrzaRuntime, log: Log) -> None:
    """Prefetch, compile, ready, fetch: one event of each kind, each with its cause, and a module that fits."""
    port: BlueprintRuntime = runtime
    fetched = port.fetch_kernel(log.request, run_id="run-7", wait_seconds=WAIT)
    out = fetched.module(torch.randn(4, 5, generator=torch.Generator().manual_seed(1)))
    assert out.shape == (4, 3)
    assert torch.count_nonzero(out) == 0
    assert fetched.latency_ms > 0
    (request,) = log.wait(ly.KernelPrefetchRequest)
    (asked,) = log.wait(ly.CompileRequested)
    (update,) = log.wait(ly.KernelCatalogUpdate)
    (ready,) = log.wait(ly.KernelArtifactReady)
    assert (request.training_run_id, request.meta.source, request.blueprint_id) == ("run-7", "kasmina", "BP002")
    assert request.issued_at.seconds > 0
    assert asked.meta.causation_id == ready.meta.causation_id == request.meta.event_id
    assert update.meta.causation_id == asked.meta.event_id
    assert ready.request_id == request.request_id
    assert ready.training_run_id == "run-7"
    assert ready.artifact_ref == update.artifact_ref == fetched.artifact_ref
    assert (ready.checksum, ready.guard_digest) == (update.manifest.weights_digest, update.manifest.guard_digest)
    assert fetched.manifest == update.manifest


@pytest.mark.usefixtures("members")
def test_known_kernel_is_fetched_without_asking(
    fabric: Fabric, runtime: UrzaRuntime, store: DirectoryBlobStore, log: Log
) -> None:
    """A second fetch, another worker and a fetch by digest give equal kernels of their own, without an event."""
    first = runtime.fetch_kernel(log.request, run_id="run-1", wait_seconds=WAIT)
    again = runtime.fetch_kernel(log.request, run_id="run-1", wait_seconds=WAIT)
    # A worker that cannot ask reads the catalogue from the log and the bytes from the store.
    other = UrzaRuntime(fabric, store=store)
    fetched = [again, other.fetch_kernel(log.request, run_id="run-2", wait_seconds=WAIT)]
    fetched += [runtime.fetch_by_digest(first.artifact_ref), other.fetch_by_digest(first.artifact_ref)]
    for each in fetched:
        assert each.artifact_ref == first.artifact_ref
        assert each.manifest == first.manifest
        assert each.module is not first.module
        for one, another in zip(each.module.parameters(), first.module.parameters(), strict=True):
            assert one is not another
            assert torch.equal(one, another)
    assert log.words("kernel-requests") == ["KernelPrefetchRequest", "CompileRequested"]


@pytest.mark.usefixtures("members")
@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (fresh_request("BP999", growth_rate=1.2345), "unknown_blueprint"),
        (fresh_request("BP002", scale=2.125), "parameter_out_of_bounds"),
        (fresh_request("BP009"), "missing_parameter"),
    ],
)
def test_what_cannot_be_had_is_unavailable(
    fabric: Fabric, runtime: UrzaRuntime, wanted: ly.KernelRequestSpec, reason: str
) -> None:
    """The forge's refusal comes back as a word: ask for what Karn does not have, twice, and hear it twice."""
    for _ in range(2):
        with pytest.raises(KernelUnavailable) as caught:
            runtime.fetch_kernel(wanted, run_id="run-1", wait_seconds=WAIT)
        assert caught.value.reason == reason
        assert wanted.blueprint_id in str(caught.value)
    log = Log(fabric, wanted)
    assert len(log.of(ly.KernelArtifactError)) == 2
    assert log.of(ly.KernelArtifactReady) == []


def test_nobody_to_ask(fabric: Fabric, store: DirectoryBlobStore, log: Log) -> None:
    """A runtime without a publisher says that the kernel is not there, and asks nobody."""
    with pytest.raises(KernelUnavailable) as caught:
        UrzaRuntime(fabric, store=store).fetch_kernel(log.request, run_id="run-1", wait_seconds=WAIT)
    assert caught.value.reason == "not_in_catalogue"
    assert log.of(ly.KernelPrefetchRequest) == []


def test_wait_is_bounded(runtime: UrzaRuntime, log: Log) -> None:
    """Nobody answers: the fetch ends by itself with "timeout", and the request stands in the log."""
    with pytest.raises(KernelUnavailable) as caught:
        runtime.fetch_kernel(log.request, run_id="run-1", wait_seconds=1.0)
    assert caught.value.reason == "timeout"
    assert len(log.of(ly.KernelPrefetchRequest)) == 1


def test_catalogue_must_be_read_in_time(fabric: Fabric, runtime: UrzaRuntime) -> None:
    """Reading the catalogue counts as waiting: without any time the fetch ends with "timeout" and asks nobody."""
    wanted = fresh_request()
    with pytest.raises(KernelUnavailable, match="catalogue") as caught:
        runtime.fetch_kernel(wanted, run_id="run-1", wait_seconds=0.0)
    assert caught.value.reason == "timeout"
    assert Log(fabric, wanted).of(ly.KernelPrefetchRequest) == []


@pytest.mark.usefixtures("members")
def test_worker_without_the_homes_store_says_so(fabric: Fabric, log: Log, tmp_path: Path) -> None:
    """Urza says ready, but the worker looks at another store: the fetch ends with "artifact_unusable"."""
    elsewhere = UrzaRuntime(
        fabric, store=DirectoryBlobStore(tmp_path / "elsewhere"), publisher=fabric.publisher("kasmina")
    )
    with pytest.raises(KernelUnavailable) as caught:
        elsewhere.fetch_kernel(log.request, run_id="run-1", wait_seconds=WAIT)
    assert caught.value.reason == "artifact_unusable"
    assert len(log.of(ly.KernelArtifactReady)) == 1


def test_malformed_request_is_unavailable(runtime: UrzaRuntime) -> None:
    """A request that no kernel could answer is refused before anybody is asked."""
    wanted = fresh_request()
    wanted.layout = "sequence"
    with pytest.raises(KernelUnavailable) as caught:
        runtime.fetch_kernel(wanted, run_id="run-1", wait_seconds=WAIT)
    assert caught.value.reason == "usage_error"


@pytest.mark.usefixtures("members")
@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_damaged_bytes_are_mended(fabric: Fabric, runtime: UrzaRuntime, log: Log, damage: str) -> None:
    """A worker that finds the bytes gone or wrong asks, the forge makes them again, and the kernel is the same."""
    first = runtime.fetch_kernel(log.request, run_id="run-1", wait_seconds=WAIT)
    weights = blob(fabric, first.manifest.weights_digest)
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:-4] + b"evil")
    other = UrzaRuntime(fabric, store=DirectoryBlobStore(fabric.home.blobs), publisher=fabric.publisher("kasmina"))
    again = other.fetch_kernel(log.request, run_id="run-2", wait_seconds=WAIT)
    assert again.artifact_ref == first.artifact_ref
    assert len(log.of(ly.CompileStarted)) == 2


def test_digest_that_nobody_has(runtime: UrzaRuntime) -> None:
    """A digest without bytes is unavailable; what is no digest is refused."""
    with pytest.raises(KernelUnavailable) as caught:
        runtime.fetch_by_digest("0" * 64)
    assert caught.value.reason == "artifact_missing"
    with pytest.raises(IntegrityError):
        runtime.fetch_by_digest("../../etc/passwd")


def test_damaged_artifact_is_refused_by_digest(fabric: Fabric, runtime: UrzaRuntime, store: DirectoryBlobStore) -> None:
    """Other bytes under a digest are an integrity error, never a kernel: damage each part in turn."""
    for part in ("manifest", "spec_digest", "weights_digest"):
        artifact = TezzeretCompiler(KarnCatalog()).compile(fresh_request())
        reference = put_artifact(store, artifact)
        path = blob(fabric, reference if part == "manifest" else getattr(artifact.manifest, part))
        path.write_bytes(path.read_bytes() + b" ")
        with pytest.raises(IntegrityError):
            runtime.fetch_by_digest(reference)


def test_lying_catalogue_is_not_believed(fabric: Fabric, store: DirectoryBlobStore, log: Log) -> None:
    """An update that names another kernel's artifact gives nothing: neither Urza nor the runtime hands it out."""
    other = TezzeretCompiler(KarnCatalog()).compile(fresh_request())
    lie = ly.KernelCatalogUpdate(artifact_ref=put_artifact(store, other), manifest=other.manifest, kernel_id=log.name)
    log.publish(lie, source="tezzeret")
    with pytest.raises(KernelUnavailable) as caught:
        UrzaRuntime(fabric, store=store).fetch_kernel(log.request, run_id="run-1", wait_seconds=WAIT)
    assert caught.value.reason == "not_in_catalogue"
    log.prefetch()
    with urza(fabric), forge(fabric):
        (ready,) = log.wait(ly.KernelArtifactReady)
    assert ready.artifact_ref != lie.artifact_ref
    fetched = UrzaRuntime(fabric, store=store).fetch_kernel(log.request, run_id="run-1", wait_seconds=WAIT)
    assert fetched.artifact_ref == ready.artifact_ref


def test_restart_forgets_nobody_and_answers_nobody_twice(fabric: Fabric, log: Log) -> None:
    """Urza asks the forge and stops, the forge works alone, Urza returns: one reply to each request, also later."""
    first, second = log.prefetch(), log.prefetch()
    with urza(fabric):
        log.wait(ly.CompileRequested)
    assert log.of(ly.KernelArtifactReady) == []
    with forge(fabric):
        log.wait(ly.CompileFinished)
    with urza(fabric):
        ready = log.wait(ly.KernelArtifactReady, 2)
    assert {each.request_id for each in ready} == {first, second}
    marker = Log(fabric, fresh_request())
    with urza(fabric), forge(fabric):
        marker.prefetch()
        marker.wait(ly.KernelArtifactReady)
    assert len(log.of(ly.KernelArtifactReady)) == 2
    assert log.words("kernel-requests").count("CompileRequested") == 1


def test_lost_reply_is_given_after_a_crash(fabric: Fabric, log: Log) -> None:
    """Urza died with its request to the forge acknowledged and nothing committed: its next life sends no second."""
    log.prefetch()
    log.ask_forge(compile_id(log.name, KernelEntry()))
    with urza(fabric), forge(fabric):
        log.wait(ly.KernelArtifactReady)
    assert len(log.of(ly.CompileRequested)) == 1
    assert log.words() == ["CompileStarted", "KernelCatalogUpdate", "CompileFinished"]


@pytest.mark.usefixtures("members")
def test_contradicting_request_is_answered_with_an_error(log: Log) -> None:
    """A request under another kernel's id gets an error and no compilation."""
    log.prefetch(request=fresh_request("BP005"))
    (error,) = log.wait(ly.KernelArtifactError)
    assert error.reason.startswith("kernel_id_mismatch: ")
    assert log.of(ly.CompileRequested) == []


def test_urza_that_cannot_mend_says_so(fabric: Fabric, log: Log, tmp_path: Path) -> None:
    """Forge and Urza look at different stores: the request hears that the artifact is unusable, once."""
    log.prefetch()
    with running(build_service(fabric, store=DirectoryBlobStore(tmp_path / "elsewhere"))), forge(fabric):
        (error,) = log.wait(ly.KernelArtifactError)
    assert error.reason.startswith("artifact_unusable: ")
    assert len(log.of(ly.CompileRequested)) == 1


def test_cache_keeps_what_was_used_last() -> None:
    """The cache is bounded in bytes: fill it beyond, and the artifact that was not used for longest is gone."""
    artifacts: dict[str, KernelArtifact] = {}
    for name in ("a", "b", "c"):
        wanted = fresh_request()
        spec = catalogue()["BP002"].spec(layout="vector", shape=[5], out_shape=[3], parameters=dict(wanted.parameters))
        artifacts[name] = make_artifact(wanted, spec)
    size = max(len(each.spec) + len(each.weights) for each in artifacts.values())
    cache = ArtifactCache(bytes_max=2 * size)
    cache.put("a", artifacts["a"])
    cache.put("b", artifacts["b"])
    assert cache.get("a") is artifacts["a"]
    cache.put("c", artifacts["c"])
    cache.put("c", artifacts["c"])
    assert len(cache) == 2
    assert cache.get("b") is None
    assert cache.get("a") is artifacts["a"]
    assert load_kernel(artifacts["c"]).plan.parameters == artifacts["c"].manifest.parameters


def request_of(log: Log, request_id: str) -> ly.KernelPrefetchRequest:
    """Return a request for the log's kernel under an id."""
    return ly.KernelPrefetchRequest(
        request_id=request_id, blueprint_id="BP002", training_run_id="run-7", kernel_id=log.name, request=log.request
    )


def append_signed(
    fabric: Fabric, log: Log, message: EventMessage, *, source: str, age_seconds: int, cause: str = ""
) -> Record:
    """Append an event that its sender issued that many seconds ago; return its record."""
    issued = Timestamp(seconds=SYSTEM_CLOCK.now_ns() // 1_000_000_000 - age_seconds)
    record = signed_record(fabric, message, key=log.name, source=source, time=issued, causation_id=cause)
    return append(fabric, [record])[0]


def letters_of(fabric: Fabric, record: Record) -> list[str]:
    """Return the reasons for which a record was set aside."""
    place = (record.topic, record.partition, record.offset)
    return [row.reason for row in list_dead_letters(fabric) if (row.topic, row.partition, row.offset) == place]


@pytest.mark.usefixtures("members")
def test_stale_and_repeated_requests_are_set_aside(fabric: Fabric, log: Log) -> None:
    """Goal: one use for a request id, and none for what came too late. Method: a stale one, a good one, its copies."""
    stale = append_signed(fabric, log, request_of(log, "stale-" + log.name), source="kasmina", age_seconds=3_600)
    (refused,) = log.wait(ly.KernelArtifactError)
    assert refused.reason.startswith("stale_request")
    assert log.of(ly.CompileRequested) == []
    good = "good-" + log.name
    append_signed(fabric, log, request_of(log, good), source="kasmina", age_seconds=1)
    log.wait(ly.KernelArtifactReady)
    copies = [append_signed(fabric, log, request_of(log, good), source="kasmina", age_seconds=1) for _ in range(3)]
    deadline = Deadline(DEADLINE_SECONDS)
    while not all(letters_of(fabric, copy) for copy in copies):
        assert not deadline.expired
    assert [letters_of(fabric, one) for one in (stale, *copies)] == [["STALE"], *[["REPLAYED"]] * 3]
    assert [reply.request_id for reply in log.of(ly.KernelArtifactReady)] == [good]


def test_a_reply_counts_for_its_own_request_and_in_time(fabric: Fabric, runtime: UrzaRuntime, log: Log) -> None:
    """Goal: no old or foreign reply answers a request. Method: three wrong ones and the right one, in this order."""
    found: list[str] = []

    def fetch() -> None:
        try:
            runtime.fetch_kernel(log.request, run_id="run-7", wait_seconds=WAIT)
        except KernelUnavailable as error:
            found.append(error.reason)

    thread = threading.Thread(target=fetch)
    thread.start()
    (request,) = log.wait(ly.KernelPrefetchRequest)

    def reply(reason: str, *, age_seconds: int, cause: str) -> Record:
        error = ly.KernelArtifactError(request_id=request.request_id, kernel_id=log.name, reason=reason)
        return append_signed(fabric, log, error, source="urza", age_seconds=age_seconds, cause=cause)

    stale = reply("old: stale", age_seconds=3_600, cause=request.request_id)
    reply("foreign: not caused by the request", age_seconds=0, cause="another-event")
    reply("right: refused", age_seconds=0, cause=request.request_id)
    thread.join(WAIT)
    assert found == ["right"]
    with pytest.raises(KernelUnavailable):
        runtime.fetch_kernel(
            log.request, run_id="run-7", wait_seconds=0.01
        )  # Its letters are settled by the next read.
    assert letters_of(fabric, stale) == ["STALE"]
