"""A loop of a user's own under torchrun: torch's wrapper, `esper.grow`, each rank its own share of the data."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import esper
from esper.core.digest import module_state, state_digest
from esper.core.errors import EsperError

EPOCHS, STEPS = 10, 8


def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return batch `number` of a problem that no linear map solves."""
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn(16, 8, generator=generator)
    return inputs, (inputs[:, 0] * inputs[:, 1] > 0).long()


def main(folder: Path, fault: str) -> int:
    """Train; write what this rank came to; exit with 70 where an error of Esper's own ended it."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    torch.manual_seed(1)
    host = nn.Sequential(
        nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()),
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.1)),
        nn.Linear(8, 2),
    )
    torch.manual_seed(100 + rank)  # Dropout of its own.
    model = DistributedDataParallel(host)
    optimizer = torch.optim.Adam(host.parameters(), lr=1e-2)
    report: dict[str, object] = {"error": ""}
    try:
        with esper.grow(
            model,
            optimizer=optimizer,
            loss_fn=functional.cross_entropy,
            probe=[batch(-1)],
            policy="fixed",
            epochs=EPOCHS,
        ) as run:
            (folder / f"run-{rank}").write_text(run.run_id)
            for epoch in range(EPOCHS):
                model.train()
                for step in range(STEPS):
                    inputs, targets = batch(1000 * rank + STEPS * epoch + step)
                    optimizer.zero_grad()
                    loss = functional.cross_entropy(model(inputs), targets)
                    loss.backward()
                    nn.utils.clip_grad_norm_(run.host_parameters(), 1.0)
                    optimizer.step()
                    run.step((inputs, targets))
                if fault == "die" and epoch == 2 and rank == 1:
                    os._exit(9)
                run.end_epoch({"loss": loss.item()})
        report["seeds"] = [[seed.slot, seed.blueprint_id, seed.stage] for seed in run.seeds]
        report["digest"] = state_digest(module_state(host))
    except EsperError as error:
        report["error"] = f"{type(error).__name__}: {error}"
    (folder / f"rank-{rank}.json").write_text(json.dumps(report))
    if report["error"]:
        os._exit(70)  # The peer may be gone: a clean end would wait for it.
    distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""))
