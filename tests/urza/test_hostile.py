"""Hostile bytes and records: none is opened, nothing of one runs, and each refusal is told to the log."""

from __future__ import annotations

import json
import pickle  # noqa: TID251 - the attacker's
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from esper.core.kernel import DirectoryBlobStore, make_artifact, put_artifact
from esper.core.ports import KernelUnavailable
from esper.karn import KarnCatalog
from esper.leyline import KeyRing
from esper.leyline import messages as ly
from esper.oona import Event, Fabric, list_dead_letters
from esper.tezzeret import TezzeretCompiler
from esper.urza import UrzaRuntime
from tests.conftest import RunningBroker
from tests.core.kernel.examples import request, spec
from tests.oona.log import append, signed_record
from tests.urza.harness import Log, forge, fresh_request, urza
from tests.urza.hostile import HOSTILE, canary, gadget

#: Fetches each hostile kernel twice through the runtime of a worker, while an audit hook listens.
CHILD = """
import json, os, sys
from pathlib import Path
from esper.core.errors import EsperError, IntegrityError
from esper.core.kernel import DirectoryBlobStore
from esper.core.settings import load_settings
from esper.oona import Fabric
from esper.urza import UrzaRuntime

EVENTS = {"pickle.find_class", "exec", "compile", "import", "subprocess.Popen", "os.system", "os.exec", "ctypes.dlopen"}

class Stores:
    def get(self, digest, **named):
        return self.store.get(digest, **named)
    def has(self, digest):
        return self.store.has(digest)
    def touch(self, digest):
        return self.store.touch(digest)

work = json.loads(Path(sys.argv[1]).read_text())
stores, heard, outcomes = Stores(), [], {}
with Fabric.open(load_settings(), member="kasmina") as fabric:
    publisher = fabric.publisher("kasmina")
    runtime = UrzaRuntime(fabric, store=stores, publisher=publisher)
    stores.store = DirectoryBlobStore(Path(work["honest"][0]))
    runtime.fetch_by_digest(work["honest"][1])
    def listen(event, arguments):
        if event in EVENTS:
            heard.append([event, str(arguments)[:200]])
    sys.addaudithook(listen)
    for name, (root, reference) in work["hostile"].items():
        stores.store = DirectoryBlobStore(Path(root))
        for _ in range(2):
            try:
                runtime.fetch_by_digest(reference)
                outcomes[name] = "accepted"
            except IntegrityError as error:
                outcomes[name] = f"{error.part}: {error}"
    at_end = list(heard)
    import pickle
    try:
        pickle.loads(bytes.fromhex(work["control"]))
    except Exception as error:
        heard.append(["control", repr(error)])
    runtime.close()
    publisher.close()
print(json.dumps({"heard": at_end, "control": heard[len(at_end):], "outcomes": outcomes}))
"""


@pytest.fixture
def store(fabric: Fabric) -> DirectoryBlobStore:
    """Return the home's blob store."""
    return DirectoryBlobStore(fabric.home.blobs)


def told(fabric: Fabric, *, since: int = 0) -> list[Event]:
    """Return the refusals that the log holds from an offset on."""
    with fabric.reader({("kernel-store", 0): since}) as reader:
        return [event for event in reader.read_to_end() if isinstance(event.message, ly.KernelIntegrityFailed)]


def end_of(fabric: Fabric) -> int:
    """Return the offset after the last record of kernel-store."""
    return fabric.cluster.watermarks([("kernel-store", 0)])[("kernel-store", 0)][1]


def plant_all(tmp_path: Path) -> dict[str, tuple[str, str]]:
    """Plant every hostile kernel in a store of its own; return where each is and what it is fetched by."""
    planted = {}
    for number, (name, plant) in enumerate(sorted(HOSTILE.items())):
        root = tmp_path / f"{number:03}" / "blobs"
        root.mkdir(parents=True)
        planted[name] = (str(root), plant(root))
    return planted


def test_no_hostile_kernel_is_opened(broker: RunningBroker, fabric: Fabric, tmp_path: Path) -> None:
    """Goal: stored bytes never become code. Method: fetch each of the hostile kernels, listen, look for the canary."""
    planted = plant_all(tmp_path)
    assert len(planted) >= 90
    honest = tmp_path / "honest"
    control = tmp_path / "control" / "blobs"
    control.mkdir(parents=True)
    work = {
        "hostile": planted,
        "honest": (str(honest), put_artifact(DirectoryBlobStore(honest), make_artifact(request(7), spec(7)))),
        "control": gadget(control).hex(),
    }
    (tmp_path / "work.json").write_text(json.dumps(work))
    since = end_of(fabric)
    found = run_child(broker, tmp_path / "work.json")
    assert found["outcomes"].keys() == planted.keys()
    assert [name for name, outcome in found["outcomes"].items() if outcome == "accepted"] == []
    assert found["heard"] == []
    assert [Path(root).parent for root, _ in planted.values() if canary(Path(root)).exists()] == []
    # The canary would have been seen, and the hook would have heard it.
    assert canary(control).exists()
    assert [event for event, _ in found["control"]][-1:] == ["pickle.find_class"]
    events = told(fabric, since=since)
    assert len(events) == len(planted), "each refusal is told once"
    assert {event.meta.source for event in events} == {"kasmina"}
    assert {event.message.artifact_ref for event in events} == {reference for _, reference in planted.values()}
    assert {event.message.part for event in events} == {"manifest", "spec", "weights"}


def run_child(broker: RunningBroker, work: Path) -> dict[str, Any]:
    """Return what the listening process found."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(work)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=300,
        env=broker.environment | {"ESPER_HOME": str(broker.home.root)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_gadget_works(tmp_path: Path) -> None:
    """Goal: the canary proves something. Method: unpickle the gadget as a victim would."""
    root = tmp_path / "blobs"
    for protocol in (0, 2, 4):
        canary(root).unlink(missing_ok=True)
        pickle.loads(gadget(root, protocol)).close()  # noqa: S301 - the very thing that must never happen elsewhere
        assert canary(root).exists()


def test_hostile_catalogue_records_are_not_believed(fabric: Fabric, store: DirectoryBlobStore, tmp_path: Path) -> None:
    """Goal: only the forge's own signed word names bytes. Method: six records that are not, then a fetch."""
    log = Log(fabric, fresh_request())
    artifact = TezzeretCompiler(KarnCatalog()).compile(log.request)
    manifest = artifact.manifest
    update = ly.KernelCatalogUpdate(
        kernel_id=log.name,
        artifact_ref=put_artifact(store, artifact),
        checksum=manifest.weights_digest,
        guard_digest=manifest.guard_digest,
        manifest=manifest,
    )
    signed = signed_record(fabric, update, key=log.name, source="tezzeret")
    stranger = KeyRing.from_secrets(b"a secret that is not the home's, but long")
    records = {
        "unsigned": replace(signed, headers=signed.headers[1:]),
        "signed by a stranger": signed_record(fabric, update, key=log.name, source="tezzeret", keyring=stranger),
        "signed by one who may not": signed_record(fabric, update, key=log.name, source="kasmina"),
        "moved to another kernel": replace(signed, key=fresh_key()),
        "changed by a byte": replace(signed, value=flipped(signed.value)),
        "of another topic": replace(signed, topic="kernel-requests"),
    }
    appended = append(fabric, records.values())
    runtime = UrzaRuntime(fabric, store=store, publisher=fabric.publisher("kasmina"))
    for _ in range(2):
        with pytest.raises(KernelUnavailable) as caught:
            runtime.fetch_kernel(log.request, run_id="run-1", wait_seconds=0.3)
        assert caught.value.reason == "timeout"
    set_aside = {(row.topic, row.partition, row.offset) for row in list_dead_letters(fabric)}
    catalogue = [record for record in appended if record.topic == "kernel-catalog"]
    assert {(record.topic, record.partition, record.offset) for record in catalogue} <= set_aside
    # The same bytes under the forge's own signature are believed.
    append(fabric, [signed])
    other = UrzaRuntime(fabric, store=store)
    assert other.fetch_kernel(log.request, run_id="run-1", wait_seconds=30).artifact_ref == update.artifact_ref


def fresh_key() -> bytes:
    """Return the key of a kernel that nobody asked for."""
    return Log.__name__.encode() * 8


def flipped(value: bytes | None) -> bytes:
    """Return a record's value with its last bit another."""
    content = value or b""
    return content[:-1] + bytes([content[-1] ^ 1])


def test_replayed_update_does_not_bring_an_old_artifact_back(fabric: Fabric, store: DirectoryBlobStore) -> None:
    """Goal: a copy is no news. Method: an old and a new update of one kernel, then the old one's exact bytes again."""
    log = Log(fabric, fresh_request())
    compiler = TezzeretCompiler(KarnCatalog())
    new, old = compiler.compile(log.request), compiler.compile(fresh_request())
    records = []
    for sequence, artifact in enumerate((old, new), start=1):
        manifest = artifact.manifest
        update = ly.KernelCatalogUpdate(
            kernel_id=log.name,
            artifact_ref=put_artifact(store, artifact),
            checksum=manifest.weights_digest,
            guard_digest=manifest.guard_digest,
            manifest=manifest,
        )
        records += append(
            fabric,
            [
                signed_record(
                    fabric, update, key=log.name, source="tezzeret", producer_id="tezzeret:p", sequence=sequence
                )
            ],
        )
    append(fabric, [records[0]])
    fetched = UrzaRuntime(fabric, store=store).fetch_kernel(log.request, run_id="run-1", wait_seconds=30)
    assert fetched.manifest == new.manifest


@pytest.mark.parametrize("lie", ["another kernel's artifact", "another checksum", "another guard"])
def test_a_catalogue_that_lies_is_told_of_once(fabric: Fabric, store: DirectoryBlobStore, lie: str) -> None:
    """Goal: an entry that contradicts its artifact is refused by all. Method: a worker, then Urza and forge."""
    log = Log(fabric, fresh_request())
    other = lie == "another kernel's artifact"
    artifact = TezzeretCompiler(KarnCatalog()).compile(fresh_request() if other else log.request)
    manifest = artifact.manifest
    update = ly.KernelCatalogUpdate(
        kernel_id=log.name,
        artifact_ref=put_artifact(store, artifact),
        checksum="0" * 64 if lie == "another checksum" else manifest.weights_digest,
        guard_digest="0" * 64 if lie == "another guard" else manifest.guard_digest,
        manifest=manifest,
    )
    log.publish(update, source="tezzeret")
    since = end_of(fabric)
    runtime = UrzaRuntime(fabric, store=store, publisher=fabric.publisher("kasmina"))
    for _ in range(2):
        with pytest.raises(KernelUnavailable):
            runtime.fetch_kernel(log.request, run_id="run-1", wait_seconds=0.2)
    refusals = [event for event in told(fabric, since=since) if event.meta.subject == log.name]
    assert [(event.meta.source, event.message.part) for event in refusals] == [("kasmina", "catalogue entry")]
    if other:
        with urza(fabric), forge(fabric):
            log.prefetch()
            log.wait(ly.KernelArtifactReady)
        refusals = [event for event in told(fabric, since=since) if event.meta.subject == log.name]
        assert {event.meta.source for event in refusals} >= {"kasmina", "urza"}
