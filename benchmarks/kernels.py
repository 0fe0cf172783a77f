"""How long does a kernel take to fetch, and what is a compiled part worth? Eager, compiled and ahead-of-time, measured.

python -m benchmarks.kernels [--device cpu] [--seconds 900] [--processes 1] [--blueprints BP014,BP011] [--only-parts]

Fetches go through `UrzaRuntime` over a real broker and a store on disk; their bounds are those of the design, and a
plain safetensors load stands beside them. Compiled parts are made by the forge's own compiler subprocess and tried in
a fresh one: for each blueprint and layout the table says what eager, the compiled pair (forward and backward) and the
ahead-of-time forward took, and which is chosen (`_kernel_parts.py`); pairs that `--seconds` did not reach are named.
A last fresh process opens a part and grafts, blends, trains and prunes its kernel, while its child processes and
recompilations are counted. `--only-parts` needs no broker.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch

from benchmarks._kernel_parts import BATCH, LIMITS, SAMPLES, Row, fresh_process, in_shares, lowest, pairs, verdicts
from benchmarks._report import Claim, at_least, at_most, report
from esper.core.clock import SYSTEM_CLOCK
from esper.core.kernel import DirectoryBlobStore, kernel_id, put_artifact
from esper.karn import KarnCatalog
from esper.karn import build_service as build_karn
from esper.leyline import messages as ly
from esper.tezzeret import CompilerProcess, TezzeretCompiler
from esper.urza import ArtifactCache, UrzaRuntime

_FETCHES = 300


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


def fetches(catalog: KarnCatalog) -> tuple[list[Claim], dict[str, Any]]:
    """Measure fetches of cached and of stored kernels."""
    # A machine that measures parts only need not have what starts a broker.
    from benchmarks._system import broker_only

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
    compiler = TezzeretCompiler(catalog, process=CompilerProcess(), limits=LIMITS, device=device)
    began, rows = SYSTEM_CLOCK.monotonic(), []
    try:
        for blueprint in catalog.list(tier="SAFE"):
            for layout in blueprint.layouts:
                artifact = compiler.compile(lowest(catalog, blueprint.blueprint_id, layout))
                benchmark = compiler.measure(artifact, batch=BATCH, samples=SAMPLES)
                latency = {each.name: each.latency.p50_ms for each in benchmark.profiles}
                rows.append({"blueprint": blueprint.blueprint_id, "layout": layout, "p50_ms": latency})
    finally:
        compiler.close()
    return {"seconds": SYSTEM_CLOCK.monotonic() - began, "kernels": rows}


def parts_claims(rows: list[Row]) -> list[Claim]:
    """Return what holds of the parts that were chosen, as a second fresh process found them."""
    chosen = [each for each in verdicts(rows) if "again" in each]
    if not chosen:
        return []
    speedup = statistics.median(each["again"]["speedup"] for each in chosen)
    warm = max(each["again"]["warm_ms"] / each["cold_ms"] for each in chosen)
    return [
        at_least("chosen_speedup_again_p50", speedup, "times eager", peer=1.0, bound=1.1),
        at_most("chosen_warm_over_cold_again_max", warm, "of cold", peer=1.0, bound=0.5),
    ]


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--blueprints", default="")
    parser.add_argument("--only-parts", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    catalog, device = KarnCatalog(), arguments.device
    claims: list[Claim] = []
    details: dict[str, Any] = {"device": device, "torch": torch.__version__, "batch": BATCH}
    if device != "cpu":
        details["accelerator"] = torch.cuda.get_device_name(device)
    if not arguments.only_parts:
        claims, latencies = fetches(catalog)
        safe = canonical(catalog, device)
        claims.append(at_most("canonical_all_safe", safe["seconds"], "s", peer=180.0, bound=1.0))
        details |= {**latencies, "canonical_all_safe": safe}
    wanted = [name for name in arguments.blueprints.split(",") if name]
    rows = in_shares(device, wanted, arguments.seconds, arguments.processes)
    measured = {(row["blueprint"], row["layout"]) for row in rows}
    claims += parts_claims(rows)
    details |= {
        "processes": arguments.processes,
        "parts": rows,
        "not_measured": [" ".join(pair) for pair in pairs(catalog, wanted) if pair not in measured],
    }
    if device == "cpu":
        fresh = fresh_process(catalog)
        details["fresh_process"] = fresh
        claims += [
            at_most("fresh_process_children", fresh["children"], "processes", peer=1.0, bound=0.0),
            at_most("fresh_process_recompilations", fresh["dynamo"], "recompilations", peer=1.0, bound=0.0),
        ]
    name = "kernels" if device == "cpu" else f"kernels_{device}"
    return report(name, claims, details, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
