"""The table of compiled parts: per blueprint and layout what eager, compiled and ahead-of-time took, and the choice.

python -m benchmarks._kernel_parts [--device cpu] [--seconds 900] [--blueprints BP014] [--share 0/1]

Prints a line of JSON per pair. Parts are made by the forge's own compiler subprocess and tried in a fresh one; one that
is chosen is tried once more, in another, since the luckiest of many trials is no promise. Pairs are taken in an order
drawn once (seed 0), every n-th of them in share i/n, until the time is spent.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from esper.core.clock import Deadline
from esper.core.errors import EsperError
from esper.core.kernel import DirectoryBlobStore, KernelArtifact, make_request, pack_part, put_artifact, why_eager
from esper.karn import KarnCatalog
from esper.leyline import messages as ly
from esper.tezzeret import CompilerProcess, Limits, TezzeretCompiler

#: Shapes of a slot by layout, of the sizes that the shipped tasks have.
SHAPES = {"vector": [40], "sequence": [32, 24], "map1d": [16, 40], "map2d": [16, 8, 8]}
SAMPLES = 200
BATCH = 64
LIMITS = Limits(seconds=600.0)
#: What runs in quarantine only is run by nobody else.
_RUNNABLE = ("SAFE", "EXPERIMENTAL")

Row = dict[str, Any]


def lowest(catalog: KarnCatalog, blueprint_id: str, layout: str) -> ly.KernelRequestSpec:
    """Return the request for a blueprint with every parameter at its lower bound."""
    bounds = catalog.get(blueprint_id).parameters
    return make_request(
        blueprint_id, {name: low for name, (low, _) in bounds.items()}, layout=layout, in_shape=SHAPES[layout]
    )


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


def measure(catalog: KarnCatalog, device: str, wanted: list[tuple[str, str]], seconds: float) -> Iterator[Row]:
    """Yield a row for each pair until the time is spent."""
    deadline = Deadline(seconds)
    maker = TezzeretCompiler(catalog, process=CompilerProcess(), limits=LIMITS, device=device)
    try:
        for blueprint_id, layout in wanted:
            if deadline.expired:
                return
            row: Row = {"blueprint": blueprint_id, "layout": layout, "shape": SHAPES[layout]}
            for kind in ("train", "forward"):
                try:
                    artifact = maker.compile(lowest(catalog, blueprint_id, layout))
                    packages, compile_ms = maker.compile_part(artifact, trains=kind == "train")
                    row[kind] = tried(catalog, artifact, packages, compile_ms, device)
                    if row[kind]["chosen"] != "eager":
                        again = tried(catalog, artifact, packages, compile_ms, device)
                        row[kind]["again"] = {name: again[name] for name in ("speedup", "warm_ms", "reason")}
                except EsperError as error:
                    row[kind] = {"chosen": "eager", "reason": str(error)[:300]}
            yield row
    finally:
        maker.close()


def in_shares(device: str, wanted: list[str], seconds: float, count: int) -> list[Row]:
    """Return the rows of `count` processes, each with its share of the pairs."""
    command = [sys.executable, "-m", "benchmarks._kernel_parts", "--device", device, "--seconds", str(seconds)]
    command += ["--blueprints", ",".join(wanted)]
    shares = [
        subprocess.Popen([*command, "--share", f"{index}/{count}"], stdout=subprocess.PIPE, text=True)
        for index in range(count)
    ]
    # One after the other: a pipe holds more than a share prints.
    return [json.loads(line) for share in shares for line in share.communicate()[0].splitlines()]


def tried(
    catalog: KarnCatalog, artifact: KernelArtifact, packages: list[bytes], compile_ms: float, device: str
) -> dict[str, Any]:
    """Return what a fresh process found of a part."""
    trier = TezzeretCompiler(catalog, process=CompilerProcess(), limits=LIMITS, device=device)
    try:
        record, benchmark = trier.try_part(artifact, packages, batch=BATCH, samples=SAMPLES)
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


def fresh_process(catalog: KarnCatalog) -> dict[str, Any]:
    """Return what a fresh process saw that opened and used a part."""
    maker = TezzeretCompiler(catalog, process=CompilerProcess(), limits=LIMITS)
    try:
        artifact = maker.compile(lowest(catalog, "BP014", "vector"))
        packages, _ = maker.compile_part(artifact, trains=True)
    finally:
        maker.close()
    with tempfile.TemporaryDirectory(prefix="esper-bench-") as folder:
        store = DirectoryBlobStore(Path(folder))
        ref, digest = put_artifact(store, artifact), store.put(pack_part(packages))
        command = [sys.executable, "-m", "benchmarks._fresh_part", folder, ref, digest]
        found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        return found


def verdicts(rows: list[Row]) -> Iterator[dict[str, Any]]:
    """Yield what was measured, row by row and kind by kind."""
    for row in rows:
        yield from (row[kind] for kind in ("train", "forward"))


def main() -> None:
    """Print the rows of one share."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--blueprints", default="")
    parser.add_argument("--share", default="0/1")
    arguments = parser.parse_args()
    index, count = map(int, arguments.share.split("/"))
    catalog = KarnCatalog()
    wanted = pairs(catalog, [name for name in arguments.blueprints.split(",") if name])[index::count]
    for row in measure(catalog, arguments.device, wanted, arguments.seconds):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
