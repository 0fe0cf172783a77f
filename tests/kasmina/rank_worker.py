"""One of several ranks that train a host with a seed, started by torchrun; writes what it came to as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from esper.core.digest import module_state, state_digest
from esper.core.errors import EsperError
from esper.core.ranks import ProcessRanks
from esper.kasmina import KasminaConfig, KasminaSeedManager, discover_slots
from esper.kasmina.testing import InMemoryRuntime
from esper.leyline import messages as ly
from tests.kasmina.support import FACTORIES, HOSTS, PROBE, RUN_ID, batch, seed_command, seeded

MOVES = {
    1: ly.SEED_OP_GERMINATE,
    3: ly.SEED_OP_START_GRAFTING,
    5: ly.SEED_OP_STABILIZE,
    6: ly.SEED_OP_EVALUATE,
    7: ly.SEED_OP_FOSSILIZE,
}


class Run:
    """One rank's host, in torch's wrapper, and its manager."""

    def __init__(self, ranks: ProcessRanks, fault: str) -> None:
        factory, self.slot = HOSTS["residual"]
        self.model = seeded(factory)
        self.wrapped = DistributedDataParallel(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-3)
        self.ranks, self.fault, self.steps = ranks, fault, 0
        self.manager = KasminaSeedManager(
            self.model,
            discover_slots(self.model, batch(0)[0], [self.slot]),
            runtime=InMemoryRuntime(FACTORIES),
            run_id=RUN_ID,
            seed=7,
            loss_fn=functional.cross_entropy,
            probe=PROBE,
            optimizer=self.optimizer,
            config=KasminaConfig(warmup_steps=5, blend_epochs=1.0),
            ranks=ranks,
        )

    def step(self) -> None:
        # Each rank its own batch: without averaging the seeds would part at once.
        inputs, targets = batch(1000 * self.ranks.rank + self.steps)
        self.manager.before_step()
        self.optimizer.zero_grad()
        functional.cross_entropy(self.wrapped(inputs), targets).backward()
        nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], 0.5)
        self.optimizer.step()
        self.manager.after_step(inputs, targets)
        self.steps += 1

    def epoch(self, number: int) -> str:
        for _ in range(8):
            self.step()
        if self.fault == "die" and number == 4 and self.ranks.rank == 1:
            os._exit(9)
        if self.fault == "unsound" and number == 2 and self.ranks.rank == 1:
            (live,) = self.manager._bed.live.values()
            live.seed.sound.fill_(value=False)
        for event in self.manager.end_epoch(number):
            self.manager.fold(event)
        if self.fault == "part" and number == 4 and self.ranks.rank == 1:
            with torch.no_grad():
                next(self.model.parameters()).add_(1e-3)
        digest = state_digest({**module_state(self.model), **self.manager.state()})
        self.ranks.check_equal(f"the weights of epoch {number}", digest)
        command = None
        if number in MOVES:
            command = seed_command(MOVES[number], epoch=number, slot=self.slot, seed_id="block.1", blueprint="BYPASS")
        decision = self.manager.handle_command(command, epoch=number, append=lambda _: None)
        if command is not None and not self.fault:
            assert decision.result == ly.COMMAND_RESULT_APPLIED, decision.reason
        return digest


def main(folder: Path, fault: str) -> int:
    """Train nine epochs; exit with 70 where an error of Esper's own ended it."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    ranks = ProcessRanks(wait_seconds=20.0)
    run, report = Run(ranks, fault), {}
    try:
        report = {"digests": [run.epoch(number) for number in range(1, 10)], "error": ""}
    except EsperError as error:
        report = {"digests": [], "error": f"{type(error).__name__}: {error}"}
    report |= {
        "stages": [ly.SeedLifecycleStage.Name(one.stage) for one in run.manager.summaries()],
        "multiply_adds": run.manager.multiply_adds,
    }
    (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(report))
    if report["error"]:
        os._exit(70)  # The peer may be gone: a clean end would wait for it.
    distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""))
