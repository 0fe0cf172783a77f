"""The forge on the real broker: one end for every request, whatever happened before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.core.kernel import (
    DirectoryBlobStore,
    get_artifact,
    kernel_id,
    load_kernel,
    manifest_digest,
    put_artifact,
    verify_artifact,
)
from esper.karn import KarnCatalog
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.tezzeret import TezzeretCompiler, build_service
from esper.tezzeret._jobs import started_id, updated_id
from tests.urza.harness import Log, forge, fresh_request, running


@pytest.fixture
def log(fabric: Fabric) -> Log:
    """Return the log of a kernel that is new."""
    return Log(fabric, fresh_request())


@pytest.fixture
def forging(fabric: Fabric) -> Iterator[None]:
    """Run the forge during a test."""
    with forge(fabric):
        yield


def blob(fabric: Fabric, digest: str) -> Path:
    """Return the file of a blob of the home."""
    return fabric.home.blobs / digest[:2] / digest


@pytest.mark.usefixtures("forging")
def test_request_becomes_a_verified_artifact(fabric: Fabric, log: Log) -> None:
    """Ask for a compilation: started, update, finished, in order and caused by it; the bytes are there and load."""
    asked = log.ask_forge()
    log.wait(ly.CompileFinished)
    assert log.words() == ["CompileStarted", "KernelCatalogUpdate", "CompileFinished"]
    update, ended = log.of(ly.KernelCatalogUpdate)[0], log.of(ly.CompileFinished)[0]
    assert update.meta.causation_id == ended.meta.causation_id == asked
    assert update.artifact_ref == ended.artifact_ref == manifest_digest(update.manifest)
    assert update.manifest.kernel_id == update.kernel_id == log.name == kernel_id(update.manifest.request)
    assert update.checksum == update.manifest.weights_digest
    assert update.compile_ms == ended.compile_ms > 0
    artifact = get_artifact(DirectoryBlobStore(fabric.home.blobs), update.artifact_ref)
    assert artifact.manifest == update.manifest
    assert load_kernel(artifact).plan.out_shape == (3,)


@pytest.mark.usefixtures("forging")
def test_finished_kernel_is_not_compiled_again(log: Log) -> None:
    """The same request twice is answered once; another request for the same kernel gets its end without a compile."""
    asked = log.ask_forge()
    log.ask_forge(asked)
    log.wait(ly.CompileFinished)
    log.ask_forge()
    log.wait(ly.CompileFinished, 2)
    assert log.words() == ["CompileStarted", "KernelCatalogUpdate", "CompileFinished", "CompileFinished"]
    first, second = log.of(ly.CompileFinished)
    assert (first.artifact_ref, first.compile_ms) == (second.artifact_ref, second.compile_ms)


@pytest.mark.usefixtures("forging")
@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_lost_bytes_are_made_again(fabric: Fabric, log: Log, damage: str) -> None:
    """A kernel whose weights are gone or damaged is compiled again, to the very same artifact."""
    log.ask_forge()
    log.wait(ly.CompileFinished)
    update = log.of(ly.KernelCatalogUpdate)[0]
    weights = blob(fabric, update.manifest.weights_digest)
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(b"\0" * update.manifest.weights_bytes)
    log.ask_forge()
    log.wait(ly.CompileFinished, 2)
    assert [each.attempt for each in log.of(ly.CompileStarted)] == [1, 2]
    assert {each.artifact_ref for each in log.of(ly.KernelCatalogUpdate)} == {update.artifact_ref}
    verify_artifact(get_artifact(DirectoryBlobStore(fabric.home.blobs), update.artifact_ref))


@pytest.mark.usefixtures("forging")
@pytest.mark.parametrize(
    ("wanted", "word"),
    [
        (fresh_request("BP999", frequency=0.01234), "unknown_blueprint"),
        (fresh_request("BP002", scale=2.25), "parameter_out_of_bounds"),
        (fresh_request("BP021", colour=1.0), "unknown_parameter"),
        (fresh_request("BP021"), "missing_parameter"),
    ],
)
def test_what_cannot_be_compiled_ends_badly(fabric: Fabric, wanted: ly.KernelRequestSpec, word: str) -> None:
    """A request that Karn refuses ends in CompileFailed with the reason's word, and puts nothing in the catalogue."""
    log = Log(fabric, wanted)
    log.ask_forge()
    failed = log.wait(ly.CompileFailed)[0]
    assert failed.reason.startswith(f"{word}: ")
    assert failed.blueprint_id == wanted.blueprint_id
    assert log.words() == ["CompileStarted", "CompileFailed"]


@pytest.mark.usefixtures("forging")
def test_request_that_contradicts_itself_ends_badly(log: Log) -> None:
    """The id must be that of what is asked for: ask for something else under a kernel's id."""
    log.ask_forge(request=fresh_request("BP005"))
    assert log.wait(ly.CompileFailed)[0].reason.startswith("integrity_error: ")
    log.ask_forge(kernel_id="0" * 64)
    assert log.wait(ly.CompileFailed, 2)[1].reason.startswith("integrity_error: ")
    assert log.of(ly.KernelCatalogUpdate) == []


def test_full_disk_is_an_answer_and_passes(fabric: Fabric, log: Log, tmp_path: Path) -> None:
    """A store that cannot be written fails the request at hand; the next one succeeds."""
    wall = tmp_path / "wall"
    wall.write_text("a file where the store wants a folder")
    log.ask_forge()
    with running(build_service(fabric, blueprints=KarnCatalog(), store=DirectoryBlobStore(wall))):
        failed = log.wait(ly.CompileFailed)[0]
    assert "error: " in failed.reason
    log.ask_forge()
    with forge(fabric):
        log.wait(ly.CompileFinished)
    assert log.words() == [
        "CompileStarted",
        "CompileFailed",
        "CompileStarted",
        "KernelCatalogUpdate",
        "CompileFinished",
    ]


def test_forge_goes_on_where_the_last_one_died(fabric: Fabric, log: Log) -> None:
    """A life that ended after its start event: the next one begins a second attempt and ends the request."""
    asked = log.ask_forge()
    log.publish(
        ly.CompileStarted(kernel_id=log.name, attempt=1),
        source="tezzeret",
        event_id=started_id(asked, 1),
        causation_id=asked,
    )
    with forge(fabric):
        log.wait(ly.CompileFinished)
    assert log.words() == ["CompileStarted", "CompileStarted", "KernelCatalogUpdate", "CompileFinished"]
    assert [each.attempt for each in log.of(ly.CompileStarted)] == [1, 2]


def test_forge_ends_what_only_lacks_its_end(fabric: Fabric, log: Log) -> None:
    """A life that ended between the catalogue's update and the end: the next one only says the end."""
    asked = log.ask_forge()
    artifact = TezzeretCompiler(KarnCatalog()).compile(log.request)
    store = DirectoryBlobStore(fabric.home.blobs)
    update = ly.KernelCatalogUpdate(
        artifact_ref=put_artifact(store, artifact), compile_ms=7.0, manifest=artifact.manifest, kernel_id=log.name
    )
    log.publish(update, source="tezzeret", event_id=updated_id(asked, 1), causation_id=asked)
    with forge(fabric):
        log.wait(ly.CompileFinished)
    assert log.words() == ["KernelCatalogUpdate", "CompileFinished"]
    assert log.of(ly.CompileFinished)[0].compile_ms == 7.0


def test_restart_says_nothing_twice(fabric: Fabric, log: Log) -> None:
    """Stop and start the forge over a finished and a failed request, delivered again: no event is added."""
    asked = log.ask_forge()
    bad = Log(fabric, fresh_request("BP998", iterations=1234.5))
    asked_bad = bad.ask_forge()
    with forge(fabric):
        log.wait(ly.CompileFinished)
        bad.wait(ly.CompileFailed)
    said, said_bad = log.words(), bad.words()
    log.ask_forge(asked)
    bad.ask_forge(asked_bad)
    marker = Log(fabric, fresh_request())
    marker.ask_forge()
    with forge(fabric):
        marker.wait(ly.CompileFinished)
    assert log.words() == said
    assert bad.words() == said_bad
