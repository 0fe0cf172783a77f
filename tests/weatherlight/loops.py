"""A loop of the user's own over a journal in memory: the very `GrowRun` that `esper.grow` gives, and real kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from esper.core.ids import RunId
from esper.core.ports import BlueprintRuntime
from esper.core.ranks import ALONE, Ranks
from esper.core.settings import load_settings
from esper.leyline import messages as ly
from esper.tolaria import MemoryJournal
from esper.weatherlight._grow._run import GrowRun
from esper.weatherlight._grow._wishes import LogLoss, Wishes
from tests.kasmina.kernels import RealKernels

Policy = Callable[[ly.SystemStatePacket], ly.AdaptationCommand | None]

#: What leads a seed on from each stage.
NEXT = {
    ly.SEED_STAGE_TRAINING: ly.SEED_OP_START_GRAFTING,
    ly.SEED_STAGE_BLENDING: ly.SEED_OP_STABILIZE,
    ly.SEED_STAGE_SHADOWING: ly.SEED_OP_EVALUATE,
    ly.SEED_STAGE_PROBATIONARY: ly.SEED_OP_FOSSILIZE,
}


class MemorySide:
    """The log of one loop: a journal in memory, and how the run ended."""

    ranks: Ranks = ALONE
    run_id = RunId("run-loop")

    def __init__(self, policy: Policy | None) -> None:
        self.settings = load_settings().model_copy(update={"checkpoint_every_epochs": 1})
        self.record = MemoryJournal(policy=policy)
        self.end: ly.TrainingRunFinished | None = None
        self.failure = ""

    def runtime(self) -> BlueprintRuntime:
        return RealKernels()

    def journal(self) -> MemoryJournal:
        return self.record

    @contextmanager
    def edge(self) -> Iterator[None]:
        yield

    def started(self, *, numerics: ly.NumericsFingerprint, parameters: int, digest: str) -> None:
        """Nobody asks."""

    def close_gap(self) -> None:
        """There is none."""

    def finished(self, end: ly.TrainingRunFinished) -> None:
        self.end = end

    def failed(self, detail: str, *, epochs: int) -> None:
        self.failure = detail


def perceptron() -> nn.Sequential:
    """Return a small network whose slots are "0" and "1"."""
    torch.manual_seed(0)
    blocks = (nn.Sequential(nn.Linear(12, 8), nn.GELU()), nn.Sequential(nn.Linear(8, 8), nn.GELU()))
    return nn.Sequential(*blocks, nn.Linear(8, 3))


def samples(seed: int, count: int = 16) -> tuple[Tensor, Tensor]:
    """Return inputs [B, 12] and their classes."""
    inputs = torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))
    targets = (inputs[:, 0] * inputs[:, 1] > 0).long() + (inputs[:, 2] * inputs[:, 3] > 0.5).long()
    return inputs, targets


class OwnLoop:
    """A training loop with Adam; `options` are what else `grow` takes."""

    def __init__(self, model: nn.Module, policy: Policy | None = None, **options: Any) -> None:
        self.model = model
        self.loss = nn.CrossEntropyLoss()
        self.optimizer = options.pop("optimizer", torch.optim.Adam(model.parameters(), lr=3e-3))
        self.scheduler = options.pop("scheduler", None)
        self.side = MemorySide(policy)
        given = {"slots": ["1"], "probe": [samples(999, 64)], "returns": False, **options}
        wishes = Wishes(
            optimizer=self.optimizer,
            loss_fn=self.loss,
            scaler=None,
            scheduler=self.scheduler,
            policy="noop",
            epochs=0,
            seed=0,
            name="",
            on_log_loss=LogLoss(),
            **given,
        )
        self.run = GrowRun(model, wishes, self.side)
        self.steps = 0

    def step(self) -> None:
        """Take one step of the loop."""
        inputs, targets = samples(self.steps)
        self.optimizer.zero_grad()
        self.loss(self.model(inputs), targets).backward()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.run.step((inputs, targets))
        self.steps += 1

    def epoch(self, steps: int = 10) -> ly.CommandOutcome:
        """Take an epoch's steps and pass its edge."""
        for _ in range(steps):
            self.step()
        return self.run.end_epoch({"loss": 1.0})

    def break_host(self) -> None:
        """Make the held-out loss no number."""
        with torch.no_grad():
            self.model.get_submodule("2").get_parameter("weight").fill_(float("nan"))

    def end(self) -> None:
        """End the block."""
        self.run.finish()
        self.run.close()

    @property
    def violations(self) -> float:
        """Breaches of the isolation that were counted."""
        assert self.run._controller is not None
        return self.run._controller.figures()["kasmina.isolation.violations"]

    @property
    def stages(self) -> list[int]:
        """The last stage of each seed."""
        return [seed.stage for seed in self.run.seeds]


def order(
    packet: ly.SystemStatePacket, operation: ly.SeedOperation, *, seed_id: str = "", **germination: Any
) -> ly.AdaptationCommand:  # fmt: skip
    """Return an order about a seed at the packet's edge."""
    epoch = packet.current_epoch
    command = ly.AdaptationCommand(
        command_id=f"c{epoch}",
        command_type=ly.COMMAND_SEED,
        target_seed_id=seed_id,
        training_run_id=packet.training_run_id,
        epoch=epoch,
        seed_operation=ly.CommandSeedOperation(operation=operation, **germination),
    )
    command.meta.event_id = f"c{epoch}"
    return command


def train_on(packet: ly.SystemStatePacket) -> ly.AdaptationCommand:
    """Return the order to go on."""
    epoch = packet.current_epoch
    command = ly.AdaptationCommand(
        command_id=f"c{epoch}",
        command_type=ly.COMMAND_CONTINUE,
        training_run_id=packet.training_run_id,
        epoch=epoch,
    )
    command.meta.event_id = f"c{epoch}"
    return command


def grower(*, until: ly.SeedStage = ly.SEED_STAGE_FOSSILIZED) -> Policy:
    """Return a policy that germinates one seed on the first slot and presses each next move on it, up to `until`."""

    def policy(packet: ly.SystemStatePacket) -> ly.AdaptationCommand:
        if not packet.seed_states:
            slot = packet.slots[0].slot
            return order(packet, ly.SEED_OP_GERMINATE, slot=slot, blueprint_id="BP009", parameters={"depth": 1.0})
        seed = packet.seed_states[-1]
        if seed.stage == until or seed.stage not in NEXT:
            return train_on(packet)
        return order(packet, NEXT[seed.stage], seed_id=seed.seed_id)

    return policy
