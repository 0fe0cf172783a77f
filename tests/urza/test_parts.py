"""Compiled parts at a fetch: only what this home's forge lists for this platform is opened, and only if it is that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from esper.core.ids import sha256_hex
from esper.core.kernel import CompiledKernel, DirectoryBlobStore, pack_part, platform_of
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.urza import UrzaRuntime
from tests.oona.log import append, signed_record
from tests.urza.harness import Log
from tests.urza.test_hostile import end_of, told
from tests.urza.test_library import catalogued

#: In the form of a part, but no machine code; nothing that is refused comes so far as to find that out.
PART = pack_part([b"forward", b"backward"])
Change = Callable[[Fabric, ly.KernelPartCompiled], None]


def listed(fabric: Fabric, log: Log, content: bytes = PART) -> ly.KernelPartCompiled:
    """Return the record of a part that this home's forge made for this machine and chose; its bytes are stored."""
    (update,) = log.of(ly.KernelCatalogUpdate)
    return ly.KernelPartCompiled(
        kernel_id=log.name,
        artifact_ref=update.artifact_ref,
        kind=ly.COMPILED_KIND_AOT_TRAIN_PACKAGE,
        part_digest=DirectoryBlobStore(fabric.home.blobs).put(content),
        part_bytes=len(content),
        forge=fabric.home.home_id,
        platform=platform_of(torch.device("cpu")),
        parity=ly.ParityFigures(passed=True, tolerance=1e-5),
        chosen=True,
        speedup=2.0,
    )


def _swap(fabric: Fabric, record: ly.KernelPartCompiled) -> None:
    digest = record.part_digest
    (fabric.home.blobs / digest[:2] / digest).write_bytes(b"another library of the same name"[: record.part_bytes])


def _link(fabric: Fabric, record: ly.KernelPartCompiled) -> None:
    digest = record.part_digest
    path = fabric.home.blobs / digest[:2] / digest
    path.replace(path.with_name("kept"))
    path.symlink_to("kept")


def _remove(fabric: Fabric, record: ly.KernelPartCompiled) -> None:
    (fabric.home.blobs / record.part_digest[:2] / record.part_digest).unlink()


HOSTILE: dict[str, tuple[Change, bool]] = {
    "swapped": (_swap, True),
    "a link": (_link, True),
    "of a path": (lambda _, record: setattr(record, "part_digest", "../../etc/passwd"), True),
    "of another size": (lambda _, record: setattr(record, "part_bytes", 3), True),
    "of another parity": (lambda _, record: setattr(record.parity, "passed", False), True),
    "removed": (_remove, False),
    "a foreign home's": (lambda _, record: setattr(record, "forge", "another home"), False),
    "another artifact's": (lambda _, record: setattr(record, "artifact_ref", "0" * 64), False),
    "another machine's": (lambda _, record: setattr(record.platform, "isa", "AVX1024"), False),
    "not chosen": (lambda _, record: setattr(record, "chosen", False), False),
}


@pytest.mark.parametrize("what", sorted(HOSTILE))
def test_hostile_compiled_part_is_not_opened(fabric: Fabric, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: no foreign machine code. Method: one lie about a part at a time; whoever opens packages fails the test."""
    monkeypatch.setattr("esper.core.kernel._compiled.open_packages", _never)
    change, is_refusal = HOSTILE[what]
    log = catalogued(fabric, "BP002")
    # Bytes of its own, so that no other test's part is damaged.
    record = listed(fabric, log, pack_part([log.name.encode(), what.encode()]))
    change(fabric, record)
    log.publish(record, source="tezzeret")
    since = end_of(fabric)
    runtime = UrzaRuntime(
        fabric, store=DirectoryBlobStore(fabric.home.blobs), publisher=fabric.publisher("kasmina"), compiled=True
    )
    for _ in range(2):
        fetched = runtime.fetch_kernel(log.request, run_id="run-1", wait_seconds=30)
        assert fetched.module is not None
        assert not isinstance(fetched.module, CompiledKernel)
    refusals = [event.message.part for event in told(fabric, since=since) if event.meta.subject == log.name]
    assert refusals == (["compiled part"] if is_refusal else [])


def _never(*_arguments: object, **_named: object) -> None:
    raise AssertionError("a hostile part was opened")


@pytest.mark.parametrize("lie", ["unsigned", "of another source"])
def test_added_compiled_part_is_not_opened(fabric: Fabric, lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a part without the forge's word is none. Method: a record that lists it, but not by the forge."""
    monkeypatch.setattr("esper.core.kernel._compiled.open_packages", _never)
    log = catalogued(fabric, "BP002")
    record = listed(fabric, log)
    source = "tezzeret" if lie == "unsigned" else "kasmina"
    signed = signed_record(fabric, record, key=log.name, source=source)
    append(fabric, [replace(signed, headers=signed.headers[1:]) if lie == "unsigned" else signed])
    runtime = UrzaRuntime(fabric, store=DirectoryBlobStore(fabric.home.blobs), compiled=True)
    assert not isinstance(runtime.fetch_kernel(log.request, run_id="run-1", wait_seconds=30).module, CompiledKernel)


def test_bytes_that_are_no_library_leave_the_kernel_eager(fabric: Fabric) -> None:
    """Goal: a part that torch cannot load costs nobody a kernel. Method: the forge lists bytes that are no library."""
    log = catalogued(fabric, "BP002")
    record = listed(fabric, log)
    log.publish(record, source="tezzeret")
    assert sha256_hex(PART) == record.part_digest
    runtime = UrzaRuntime(fabric, store=DirectoryBlobStore(fabric.home.blobs), compiled=True)
    module = runtime.fetch_kernel(log.request, run_id="run-1", wait_seconds=30).module
    assert module is not None
    assert torch.count_nonzero(module(torch.ones(2, 5))) == 0
