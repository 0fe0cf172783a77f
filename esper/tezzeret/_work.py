"""What the compiler subprocess does: makes canonical artifacts, and measures them. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch

from esper.core.clock import SYSTEM_CLOCK
from esper.core.errors import UsageError
from esper.core.kernel import (
    FORMAT_VERSION,
    KernelArtifact,
    load_kernel,
    make_artifact,
    make_request,
    manifest_bytes,
    parse_manifest,
    platform_of,
)
from esper.core.kernel._canonical import parse_canonical
from esper.leyline import messages as ly
from esper.tezzeret._birth import birth_fault
from esper.tezzeret._faults import NOT_ZERO
from esper.tezzeret._measure import measure_eager
from esper.tezzeret._wire import Frame

_SPEC_BYTES_MAX: Final = 1 << 20

# Training computes with one thread (`esper.core.numerics.deterministic`), so that is what figures are taken with.
torch.set_num_threads(1)


def work(frame: Frame) -> Frame:
    """Return the answer to one piece of work; whatever it raises is the answer that it failed."""
    return _WORK[str(frame.header["op"])](frame)


def warm_up() -> None:
    """Make a kernel that nobody asked for: what torch does for the first time takes it twenty times as long."""
    request = make_request("warm-up", {}, layout="vector", in_shape=[1])
    linear = {"op": "linear", "in": 1, "out": 1, "bias": True}
    spec = {
        "format": FORMAT_VERSION,
        "layout": "vector",
        "dtype": "float32",
        "in_shape": [1],
        "out_shape": [1],
        "body": linear,
        "end": {"op": "gain", "features": 1},
    }
    make_artifact(request, spec)


def _ready(_frame: Frame) -> Frame:
    """Say that torch is there."""
    return Frame({"ok": True})


def _make(frame: Frame) -> Frame:
    """Return manifest, spec and weights of a request (protobuf) and its spec (canonical JSON).

    With `runs` the kernel is run once, and refused where its first output is not exactly zero.
    """
    request, spec = frame.parts
    parsed = parse_canonical(spec, what="kernel spec", bytes_max=_SPEC_BYTES_MAX)
    artifact = make_artifact(ly.KernelRequestSpec.FromString(request), parsed)
    if frame.header.get("runs") is True and (fault := birth_fault(load_kernel(artifact))):
        return _unborn(fault)
    return Frame({"ok": True}, [manifest_bytes(artifact.manifest), artifact.spec, artifact.weights])


def _birth(frame: Frame) -> Frame:
    """Run an artifact (manifest, spec, weights) once, and say whether its first output is exactly zero."""
    fault = birth_fault(load_kernel(artifact_of(frame)))
    return _unborn(fault) if fault else Frame({"ok": True})


def _unborn(fault: str) -> Frame:
    return Frame({"ok": False, "kind": NOT_ZERO, "cause": fault})


def _measure(frame: Frame) -> Frame:
    """Return the latency of an artifact (manifest, spec, weights) run eagerly, as a BlueprintBenchmark."""
    kernel = load_kernel(artifact_of(frame))
    benchmark = ly.BlueprintBenchmark(platform=platform_of(device_of(frame)))
    benchmark.profiles.extend(
        measure_eager(
            kernel,
            device=device_of(frame),
            batch=number(frame.header, "batch"),
            samples=number(frame.header, "samples"),
        )
    )
    return Frame({"ok": True}, [benchmark.SerializeToString()])


def _compile_part(frame: Frame) -> Frame:
    """Return the packages of a compiled part of an artifact, and the milliseconds that making them took."""
    from esper.tezzeret._aot import compile_packages  # loads the compiler, which most forges never need

    kernel = load_kernel(artifact_of(frame))
    began = SYSTEM_CLOCK.monotonic()
    packages = compile_packages(kernel, trains=frame.header["trains"] is True, device=device_of(frame))
    return Frame({"ok": True, "compile_ms": (SYSTEM_CLOCK.monotonic() - began) * 1e3}, packages)


def _try_part(frame: Frame) -> Frame:
    """Return what was found of an artifact's compiled part: a record (protobuf) and a benchmark (protobuf)."""
    from esper.tezzeret._trial import try_part

    record, benchmark = try_part(
        load_kernel(artifact_of(frame)),
        frame.parts[3:],
        device=device_of(frame),
        batch=number(frame.header, "batch"),
        samples=number(frame.header, "samples"),
    )
    for each in (record.platform, benchmark.platform):
        each.CopyFrom(platform_of(device_of(frame)))
    return Frame({"ok": True}, [record.SerializeToString(), benchmark.SerializeToString()])


def _platform(frame: Frame) -> Frame:
    """Return the platform of this process, as protobuf."""
    return Frame({"ok": True}, [platform_of(device_of(frame)).SerializeToString()])


def artifact_of(frame: Frame) -> KernelArtifact:
    """Return the artifact that a frame's first three parts are."""
    manifest, spec, weights = frame.parts[:3]
    return KernelArtifact(parse_manifest(manifest), spec, weights)


def device_of(frame: Frame) -> torch.device:
    """Return the device that a frame names; raises UsageError when it is not there."""
    device = torch.device(str(frame.header.get("device", "cpu")))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device} cannot be used", cause="this machine has none", next_step="use cpu")
    return device


def number(header: Mapping[str, object], name: str) -> int:
    """Return a whole number of a header."""
    value = header[name]
    assert isinstance(value, int), f"{name} is a whole number"
    return value


_WORK: Final[Mapping[str, Callable[[Frame], Frame]]] = {
    "ready": _ready,
    "make": _make,
    "birth": _birth,
    "measure": _measure,
    "compile_part": _compile_part,
    "try_part": _try_part,
    "platform": _platform,
}
