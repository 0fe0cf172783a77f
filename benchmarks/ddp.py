"""One network on several ranks: does it grow, do the ranks stay one, and what does a step cost beside torch's wrapper?

python -m benchmarks.ddp [--ranks 2] [--backend gloo|nccl] [--rounds 10] [--steps 10] [--json]

Starts itself again under torchrun. Every rank trains a wide MLP in DistributedDataParallel, each its own batches, with
Kasmina at its side. The first rank's journal lies in memory and answers by a script (germinate, graft, stabilise,
evaluate, fossilise); what it records, kernel included, goes to the others as under `esper.grow`, so that no broker, no
Java and no network is needed. `tests/integration/test_ranks.py` does the same through a real broker.

* digests: at every edge and at the end all ranks have the same one;
* seeds: one germinated from a real artifact, checked by digest on each rank, and became a part of the host;
* step time: with empty slots at most 3 % above the same loop in the bare wrapper, in turns; with a seed in TRAINING
  (shadow passes each 4th step) and with a fossil what it comes to is reported.

Written to results/ddp_BACKEND.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, distributed
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from benchmarks._interleaved import detail, interleaved, ratio
from benchmarks._report import at_least, at_most, report
from benchmarks._training_arms import wide_mlp
from esper.core.digest import module_state, state_digest
from esper.core.kernel import DirectoryBlobStore, load_kernel, make_artifact, put_artifact
from esper.core.ports import FetchedKernel, KernelUnavailable
from esper.core.ranks import ProcessRanks
from esper.karn import KarnCatalog
from esper.kasmina import KasminaConfig, KasminaSeedManager, discover_slots
from esper.leyline import messages as ly
from esper.tolaria import EpochEdge, MemoryJournal
from esper.weatherlight._grow._ranks import FollowingJournal, LeadingJournal, ReceivedKernels

_RUN: Final = "run-ranks"
_SLOT: Final = "1"
_BLUEPRINT: Final = "BP021"
_PARAMETERS: Final = {"hidden_multiple": 2.0}
_EMPTY_MAX: Final = 1.03
_STEPS_PER_EPOCH: Final = 8
_WAIT_SECONDS: Final = 120.0
_MOVES: Final = {
    1: ly.SEED_OP_GERMINATE,
    4: ly.SEED_OP_START_GRAFTING,
    7: ly.SEED_OP_STABILIZE,
    8: ly.SEED_OP_EVALUATE,
    9: ly.SEED_OP_FOSSILIZE,
}
_EPOCHS: Final = 11
#: Of the problem: few causes spread over all features, and classes as many as the host tells apart.
_CAUSES: Final = 16
_CLASSES: Final = 10


def script(packet: ly.SystemStatePacket) -> ly.AdaptationCommand | None:
    """Answer each epoch as the table of moves says."""
    operation = _MOVES.get(packet.current_epoch)
    if operation is None:
        return None
    command = ly.AdaptationCommand(
        command_id=f"command-{packet.current_epoch}",
        command_type=ly.COMMAND_SEED,
        training_run_id=_RUN,
        epoch=packet.current_epoch,
        seed_operation=ly.CommandSeedOperation(operation=operation),
    )
    if operation == ly.SEED_OP_GERMINATE:
        command.seed_operation.blueprint_id, command.seed_operation.slot = _BLUEPRINT, _SLOT
        command.seed_operation.parameters.update(_PARAMETERS)
    else:
        command.target_seed_id = f"{_SLOT}.1"
    command.meta.event_id = command.command_id
    return command


class ForgedKernels:
    """Forges the real artifact of a blueprint into a store, as Tezzeret does; for the first rank."""

    def __init__(self, store: DirectoryBlobStore) -> None:
        self._store = store

    def fetch_kernel(self, request: ly.KernelRequestSpec, *, run_id: str, wait_seconds: float) -> FetchedKernel:
        """Return the kernel for `request`."""
        artifact = make_artifact(request, KarnCatalog().build_spec(request))
        digest = put_artifact(self._store, artifact)
        return FetchedKernel(load_kernel(artifact), digest, artifact.manifest, 0.0, artifact=artifact)

    def fetch_by_digest(self, artifact_ref: str) -> FetchedKernel:
        """Refuse: this run is not resumed."""
        raise KernelUnavailable(f"no kernel is kept under {artifact_ref!r}", reason="not_found")


class Bare:
    """A loop in torch's wrapper alone."""

    def __init__(self, device: torch.device, *, width: int, batch: int, rank: int) -> None:
        torch.manual_seed(3)
        self.device, self.width, self.size, self.rank = device, width, batch, rank
        self.model = wide_mlp(width).to(device)
        self.wrapped = DistributedDataParallel(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-4)
        self.taken = 0
        fixed = torch.Generator().manual_seed(5)
        self.features = torch.randn(_CAUSES, width, generator=fixed) / _CAUSES**0.5
        self.classes = torch.randn(_CAUSES, _CLASSES, generator=fixed)

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Return a batch that no other number gives, of a problem that can be learned: few causes, many features."""
        generator = torch.Generator().manual_seed(number)
        causes = torch.randn(self.size, _CAUSES, generator=generator)
        targets = (causes.abs() @ self.classes).argmax(dim=1)
        return (causes @ self.features).to(self.device), targets.to(self.device)

    def train(self, inputs: Tensor, targets: Tensor) -> None:
        """Take the host's own step."""
        self.optimizer.zero_grad()
        functional.cross_entropy(self.wrapped(inputs), targets).backward()
        self.optimizer.step()

    def steps(self, count: int) -> None:
        """Take steps on one batch and wait for them."""
        inputs, targets = self.batch(self.rank)
        for _ in range(count):
            self.train(inputs, targets)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Growing(Bare):
    """The same loop with Kasmina at its side."""

    def __init__(
        self, ranks: ProcessRanks, device: torch.device, folder: Path, *, width: int, batch: int, shadow_every: int = 4
    ) -> None:
        super().__init__(device, width=width, batch=batch, rank=ranks.rank)
        self.ranks, store, kernels = ranks, DirectoryBlobStore(folder / "blobs"), ReceivedKernels()
        self.manager = KasminaSeedManager(
            self.model,
            discover_slots(self.model, self.batch(0)[0][:2], [_SLOT]),
            runtime=ForgedKernels(store) if ranks.leads else kernels,
            run_id=_RUN,
            seed=7,
            loss_fn=functional.cross_entropy,
            probe=[self.batch(10_000 + index) for index in range(2)],
            optimizer=self.optimizer,
            config=KasminaConfig(shadow_every=shadow_every, blend_epochs=2.0, warmup_steps=4),
            ranks=ranks,
        )
        leading = LeadingJournal(MemoryJournal(script), ranks, store)
        journal = leading if ranks.leads else FollowingJournal(ranks, kernels)
        self.edge = EpochEdge(run_id=_RUN, attempt=1, controller=self.manager, journal=journal)
        self.refused: list[str] = []

    def train(self, inputs: Tensor, targets: Tensor) -> None:
        self.manager.before_step()
        super().train(inputs, targets)
        self.manager.after_step(inputs, targets)

    def digest(self) -> str:
        """Return the state digest of host and seeds."""
        return state_digest({**module_state(self.model), **self.manager.state()})

    def epoch(self, number: int) -> str:
        """Train an epoch on this rank's own batches and pass its edge; return the digest that all ranks had."""
        for _ in range(_STEPS_PER_EPOCH):
            self.train(*self.batch(1000 * (self.rank + 1) + self.taken))
            self.taken += 1
        self.edge.settle_faults(number)
        digest = self.digest()
        self.ranks.check_equal(f"the weights of epoch {number}", digest)
        packet = ly.SystemStatePacket(training_run_id=_RUN, current_epoch=number, weights_digest=digest)
        packet.meta.event_id = f"state-{number}"
        outcome = self.edge.close(packet)
        if outcome.result == ly.COMMAND_RESULT_REJECTED:
            self.refused.append(f"epoch {number}: {outcome.reason}")
        return digest


def work(folder: Path, backend: str, *, rounds: int, steps: int) -> None:
    """Be one rank: time empty slots, grow a seed, time it in TRAINING and as a fossil; write what was found."""
    rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    distributed.init_process_group(backend)
    ranks = ProcessRanks(wait_seconds=_WAIT_SECONDS)
    width, batch = (1024, 16384) if device.type == "cuda" else (512, 128)
    bare = Bare(device, width=width, batch=batch, rank=rank)
    again = Bare(device, width=width, batch=batch, rank=rank)
    found: dict[str, Any] = {}

    def another(shadow_every: int = 4) -> Growing:
        return Growing(ranks, device, folder, width=width, batch=batch, shadow_every=shadow_every)

    def time_arms(name: str, arm: Growing) -> None:
        times = interleaved({"bare": bare, "again": again, name: arm}, rounds=rounds, steps=steps)
        found[name] = detail(ratio(times, name, "bare"))
        found[f"{name}_a_a"] = detail(ratio(times, "again", "bare"))

    time_arms("empty", another())
    training = another()
    training.epoch(1)
    time_arms("training", training)
    growing = another(shadow_every=1)
    digests = [growing.epoch(number) for number in range(1, _EPOCHS + 1)]
    time_arms("fossil", growing)
    ranks.check_equal("the weights at the end", growing.digest())
    stages = [ly.SeedLifecycleStage.Name(seed.stage) for seed in growing.manager.summaries()]
    document = {"digests": [*digests, growing.digest()], "stages": stages, "refused": growing.refused, "times": found}
    (folder / f"rank-{rank}.json").write_text(json.dumps(document))
    distributed.destroy_process_group()


def torchrun(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the ranks and return what each of them found."""
    with tempfile.TemporaryDirectory(prefix="esper-ddp-") as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.ranks}"]
        command += ["-m", "benchmarks.ddp", "--folder", folder, "--backend", options.backend]
        command += ["--rounds", str(options.rounds), "--steps", str(options.steps)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=sys.stderr)
        return [json.loads((Path(folder) / f"rank-{rank}.json").read_text()) for rank in range(options.ranks)]


def main() -> int:
    """Start the ranks, judge what they found, and report it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--backend", choices=["gloo", "nccl"], default="gloo")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.folder:
        work(Path(options.folder), options.backend, rounds=options.rounds, steps=options.steps)
        return 0
    found = torchrun(options)
    first = found[0]
    agreeing = sum(one["digests"] == first["digests"] for one in found)
    grown = sum(one["stages"] == ["SEED_STAGE_FOSSILIZED"] for one in found)
    times = first["times"]
    claims = [
        at_least("ranks with equal digests at every edge", agreeing, "ranks", peer=len(found), bound=1.0),
        at_least("ranks on which the seed became a part of the host", grown, "ranks", peer=len(found), bound=1.0),
        at_most(
            "step in DistributedDataParallel, empty slots",
            times["empty"]["ms"],
            "ms",
            peer=times["empty"]["ms"] / times["empty"]["median"],
            bound=_EMPTY_MAX,
        ),
    ]
    return report(f"ddp_{options.backend}", claims, {"ranks": len(found), **first}, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
