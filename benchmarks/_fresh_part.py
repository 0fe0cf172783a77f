"""A fresh process that opens a compiled part and grafts, blends, trains and prunes its kernel, beside an eager twin.

python benchmarks/_fresh_part.py STORE ARTIFACT_REF PART_DIGEST

Prints JSON: child processes seen, what dynamo traced, the largest difference of outputs from eager's over the whole
training, how far the kernel's end was moved, and why the part was given up, if it was.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import psutil
import torch
from torch._dynamo.utils import counters

from esper.core.clock import SYSTEM_CLOCK
from esper.core.ids import sha256_hex
from esper.core.kernel import DirectoryBlobStore, Kernel, get_artifact, load_kernel, open_part, platform_of
from esper.leyline import messages as ly

_STEPS = 40
_GRAFTED, _PRUNED = 5, 35
_BATCHES = (64, 1, 7, 2, 300)


def train(kernel: Kernel) -> list[torch.Tensor]:
    """Return the kernel's outputs over a training: shadowed at first, then blended in, then pruned."""
    generator = torch.Generator().manual_seed(1)
    features = kernel.plan.in_shape[-1]
    host = torch.nn.Linear(features, features)
    torch.nn.init.eye_(host.weight)
    torch.nn.init.zeros_(host.bias)
    optimiser, outs = torch.optim.SGD(kernel.parameters(), lr=0.05), []
    for step in range(_STEPS):
        x = torch.randn(_BATCHES[step % len(_BATCHES)], features, generator=generator)
        hidden = host(x)
        if step < _PRUNED:
            grafted = step >= _GRAFTED
            alpha = min(1.0, 0.05 * (1 + step - _GRAFTED)) if grafted else 1.0
            out = hidden + alpha * kernel(hidden if grafted else hidden.detach())
            optimiser.zero_grad()
            (out - torch.roll(x, 1, 1)).square().mean().backward()
            optimiser.step()
        with torch.no_grad():
            outs.append(kernel(x))
    return outs


def main() -> None:
    """Open the part, train twice, print."""
    torch.set_num_threads(1)
    store, ref = DirectoryBlobStore(Path(sys.argv[1])), sys.argv[2]
    children: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            children.update(each.pid for each in psutil.Process().children(recursive=True))

    watcher = threading.Thread(target=watch)
    watcher.start()
    content = store.get(sys.argv[3])
    record = ly.KernelPartCompiled(
        kind=ly.COMPILED_KIND_AOT_TRAIN_PACKAGE,
        artifact_ref=ref,
        part_digest=sha256_hex(content),
        part_bytes=len(content),
        forge="home",
        platform=platform_of(torch.device("cpu")),
        parity=ly.ParityFigures(passed=True, tolerance=1e-5),
    )
    artifact = get_artifact(store, ref)
    began = SYSTEM_CLOCK.monotonic()
    compiled = open_part(load_kernel(artifact), record, content, artifact_ref=ref, home_id="home")
    opened_ms = (SYSTEM_CLOCK.monotonic() - began) * 1e3
    with torch.compiler.set_stance("fail_on_recompile"):
        eager_outs, compiled_outs = train(load_kernel(artifact)), train(compiled)
    done.set()
    watcher.join()
    found = {
        "children": len(children),
        "dynamo": sum(map(len, counters.values())),
        "worst": max((a - b).abs().max().item() for a, b in zip(eager_outs, compiled_outs, strict=True)),
        "moved": max(parameter.abs().max().item() for parameter in compiled.end.parameters()),
        "reason": compiled.reason,
        "opened_ms": opened_ms,
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
