"""How long does a kernel take to fetch, and what is a compiled part worth? Eager, compiled and ahead-of-time, measured.

python -m benchmarks.kernels [--device cpu] [--seconds 900] [--blueprints BP014,BP011] [--json]

Fetches go through `UrzaRuntime` over a real broker and a store on disk; their bounds are those of the design, and a
plain safetensors load stands beside them. Compiled parts are made by the forge's own compiler subprocess and tried in
a fresh one: for each blueprint and layout the table says what eager, the compiled pair (forward and backward) and the
ahead-of-time forward took, and which is chosen. Blueprints are taken in an order drawn once (seed 0) until `--seconds`
are spent; those left are named. A last fresh process opens a part and grafts, blends, trains and prunes its kernel,
while its child processes and recompilations are counted.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch

from benchmarks._report import Claim, at_most, report
from benchmarks._system import broker_only
from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.errors import EsperError
from esper.core.kernel import (
    DirectoryBlobStore,
    KernelArtifact,
    kernel_id,
    make_request,
    pack_part,
    put_artifact,
    why_eager,
)
from esper.karn import KarnCatalog
from esper.karn import build_service as build_karn
from esper.leyline import messages as ly
from esper.tezzeret import CompilerProcess, Limits, TezzeretCompiler
from esper.urza import ArtifactCache, UrzaRuntime

#: Shapes of a slot by layout, of the sizes that the shipped tasks have.
SHAPES = {"vector": [40], "sequence": [32, 24], "map1d": [16, 40], "map2d": [16, 8, 8]}
_FETCHES = 300
_SAMPLES = 200
_BATCH = 64
_LIMITS = Limits(seconds=600.0)
#: What runs in quarantine only is run by nobody else.
_RUNNABLE = ("SAFE", "EXPERIMENTAL")


def percentile(values: list[float], share: float) -> float:
    """Return the value that `share` of all lie at or below, by nearest rank."""
    return sorted(values)[max(0, round(share * len(values)) - 1)]


def times_ms(call: Callable[[], object], count: int) -> list[float]:
    """Return what single calls took."""
    taken = []
    for _ in range(count):
        began = SYSTEM_CLOCK.monotonic()
        call()
        taken.append((SYSTEM_CLOCK.monotonic() - began) * 1e3)
    return taken


def lowest(catalog: KarnCatalog, blueprint_id: str, layout: str) -> ly.KernelRequestSpec:
    """Return the request for a blueprint with every parameter at its lower bound."""
    bounds = catalog.get(blueprint_id).parameters
    return make_request(
        blueprint_id, {name: low for name, (low, _) in bounds.items()}, layout=layout, in_shape=SHAPES[layout]
    )


def fetches(catalog: KarnCatalog) -> tuple[list[Claim], dict[str, Any]]:
    """Measure fetches of cached and of stored kernels."""
    artifact = TezzeretCompiler(catalog).compile(lowest(catalog, "BP014", "vector"))
    with broker_only() as fabric, fabric.publisher("karn") as karn, fabric.publisher("tezzeret") as tezzeret:
        build_karn(fabric, catalog=catalog).register(karn)
        store = DirectoryBlobStore(fabric.home.blobs)
        name = kernel_id(artifact.manifest.request)
        update = ly.KernelCatalogUpdate(
            kernel_id=name,
            artifact_ref=put_artifact(store, artifact),
            checksum=artifact.manifest.weights_digest,
            guard_digest=artifact.manifest.guard_digest,
            manifest=artifact.manifest,
        )
        tezzeret.publish(update, key=name)

        def measured(runtime: UrzaRuntime) -> list[float]:
            def fetch() -> None:
                runtime.fetch_kernel(artifact.manifest.request, run_id="bench", wait_seconds=30)

            fetch()
            return times_ms(fetch, _FETCHES)

        cached = measured(UrzaRuntime(fabric, store=store))
        stored = measured(UrzaRuntime(fabric, store=store, cache=ArtifactCache(0)))
    # The peer: nothing verified, nothing built. The format can hold no code.
    plain = times_ms(lambda: safetensors.torch.load(artifact.weights), _FETCHES)
    claims = [
        at_most("fetch_cached_p50", percentile(cached, 0.5), "ms", peer=1.0, bound=1.0),
        at_most("fetch_stored_p50", percentile(stored, 0.5), "ms", peer=10.0, bound=1.0),
        at_most("fetch_stored_p95", percentile(stored, 0.95), "ms", peer=50.0, bound=1.0),
    ]
    rows = {"cached": cached, "stored": stored, "plain_safetensors_load": plain}
    return claims, {
        key: {"p50_ms": percentile(each, 0.5), "p95_ms": percentile(each, 0.95)} for key, each in rows.items()
    }


def canonical(catalog: KarnCatalog, device: str) -> dict[str, Any]:
    """Return what the forge's work for every SAFE blueprint takes: canonical artifact and measurements, all layouts."""
    compiler = TezzeretCompiler(catalog, process=CompilerProcess(), limits=_LIMITS, device=device)
    began, rows = SYSTEM_CLOCK.monotonic(), []
    try:
        for blueprint in catalog.list(tier="SAFE"):
            for layout in blueprint.layouts:
                artifact = compiler.compile(lowest(catalog, blueprint.blueprint_id, layout))
                benchmark = compiler.measure(artifact, batch=_BATCH, samples=_SAMPLES)
                latency = {each.name: each.latency.p50_ms for each in benchmark.profiles}
                rows.append({"blueprint": blueprint.blueprint_id, "layout": layout, "p50_ms": latency})
    finally:
        compiler.close()
    return {"seconds": SYSTEM_CLOCK.monotonic() - began, "kernels": rows}


def pairs(catalog: KarnCatalog, wanted: list[str]) -> list[tuple[str, str]]:
    """Return (blueprint, layout) of what may be run, in an order drawn once."""
    found = [
        (each.blueprint_id, layout)
        for each in catalog.list()
        for layout in each.layouts
        if each.tier in _RUNNABLE and (not wanted or each.blueprint_id in wanted)
    ]
    random.Random(0).shuffle(found)  # noqa: S311 - an order, no secret
    return found


def parts_table(
    catalog: KarnCatalog, device: str, wanted: list[str], seconds: float
) -> tuple[list[dict[str, Any]], list[str], tuple[KernelArtifact, list[bytes]] | None]:
    """Return a row for each pair that was measured, those left, and one kernel with its pair of packages."""
    deadline, rows, left, kept = Deadline(seconds), [], [], None
    maker = TezzeretCompiler(catalog, process=CompilerProcess(), limits=_LIMITS, device=device)
    try:
        for blueprint_id, layout in pairs(catalog, wanted):
            if deadline.expired:
                left.append(f"{blueprint_id} {layout}")
                continue
            row: dict[str, Any] = {"blueprint": blueprint_id, "layout": layout, "shape": SHAPES[layout]}
            for kind in ("train", "forward"):
                try:
                    artifact = maker.compile(lowest(catalog, blueprint_id, layout))
                    packages, compile_ms = maker.compile_part(artifact, trains=kind == "train")
                    row[kind] = tried(catalog, artifact, packages, compile_ms, device)
                    # The process that grafts a part trains vectors.
                    kept = (artifact, packages) if kind == "train" and layout == "vector" else kept
                except EsperError as error:
                    row[kind] = {"chosen": "eager", "reason": str(error)[:300]}
            rows.append(row)
            sys.stderr.write(json.dumps(row) + "\n")
    finally:
        maker.close()
    return rows, left, kept


def tried(
    catalog: KarnCatalog, artifact: KernelArtifact, packages: list[bytes], compile_ms: float, device: str
) -> dict[str, Any]:
    """Return what a fresh process found of a part."""
    trier = TezzeretCompiler(catalog, process=CompilerProcess(), limits=_LIMITS, device=device)
    try:
        record, benchmark = trier.try_part(artifact, packages, batch=_BATCH, samples=_SAMPLES)
    finally:
        trier.close()
    record.compile_ms = compile_ms
    reason = record.reason or why_eager(record)
    word = "compiled" if len(packages) == 2 else "aot"
    return {
        **{each.name: {"p50_ms": each.latency.p50_ms, "p95_ms": each.latency.p95_ms} for each in benchmark.profiles},
        "cold_ms": compile_ms,
        "warm_ms": record.warm_compile_ms,
        "parity": [record.parity.forward_abs_max, record.parity.backward_abs_max],
        "speedup": record.speedup,
        "chosen": "eager" if reason else word,
        "reason": reason,
    }


def fresh_process(kept: tuple[KernelArtifact, list[bytes]]) -> dict[str, Any]:
    """Return what a fresh process saw that opened and used a part."""
    artifact, packages = kept
    with tempfile.TemporaryDirectory(prefix="esper-bench-") as folder:
        store = DirectoryBlobStore(Path(folder))
        ref, digest = put_artifact(store, artifact), store.put(pack_part(packages))
        command = [sys.executable, "-m", "benchmarks._fresh_part", folder, ref, digest]
        found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        return found


def verdicts(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield what was measured, row by row and kind by kind."""
    for row in rows:
        yield from (row[kind] for kind in ("train", "forward"))


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--blueprints", default="")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    catalog = KarnCatalog()
    claims, details = fetches(catalog)
    safe = canonical(catalog, arguments.device)
    claims.append(at_most("canonical_all_safe", safe["seconds"], "s", peer=180.0, bound=1.0))
    wanted = [name for name in arguments.blueprints.split(",") if name]
    rows, left, kept = parts_table(catalog, arguments.device, wanted, arguments.seconds)
    chosen = [each for each in verdicts(rows) if each["chosen"] != "eager"]
    warm = max((each["warm_ms"] / each["cold_ms"] for each in chosen), default=0.0)
    slowest = min((each["speedup"] for each in chosen), default=1.1)
    claims += [
        at_most("chosen_warm_over_cold", warm, "of cold", peer=1.0, bound=0.5),
        at_most("chosen_eager_share_of_time", 1.1 / slowest, "of allowed", peer=1.0, bound=1.0),
    ]
    details |= {
        "canonical_all_safe": safe,
        "device": arguments.device,
        "batch": _BATCH,
        "parts": rows,
        "not_measured": left,
    }
    if kept is not None and arguments.device == "cpu":
        fresh = fresh_process(kept)
        details["fresh_process"] = fresh
        claims += [
            at_most("fresh_process_children", fresh["children"], "processes", peer=1.0, bound=0.0),
            at_most("fresh_process_recompilations", fresh["dynamo"], "recompilations", peer=1.0, bound=0.0),
        ]
    return report(
        "kernels" if arguments.device == "cpu" else f"kernels_{arguments.device}",
        claims,
        details,
        as_json=arguments.json,
    )


if __name__ == "__main__":
    sys.exit(main())
