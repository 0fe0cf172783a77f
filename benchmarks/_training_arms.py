"""Loops to time side by side: a plain one, and the same with Kasmina at its side in some state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.core.flops import count_multiply_adds
from esper.karn import catalogue
from esper.kasmina import KasminaConfig, KasminaSeedManager, add_sockets, discover_slots
from esper.kasmina.grafting._passes import Isolation
from esper.kasmina.testing import InMemoryRuntime
from esper.leyline import EventMessage
from esper.leyline import messages as ly

_CLASSES: Final = 10
#: Edges after which a seed has what gate G2 asks for.
_TRAINING_EPOCHS: Final = 3


def wide_mlp(width: int) -> nn.Module:
    """Return an MLP of four hidden layers, each a slot of its own."""
    blocks = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(4)]
    return nn.Sequential(*blocks, nn.Linear(width, _CLASSES))


class SmallTransformer(nn.Module):
    """Encoder layers over [batch, length, width], and a head on their mean."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 8, 4 * width, dropout=0.0, batch_first=True) for _ in range(depth)
        )
        self.head = nn.Linear(width, _CLASSES)

    def forward(self, x_BLD: Tensor) -> Tensor:
        for layer in self.layers:
            x_BLD = layer(x_BLD)
        out: Tensor = self.head(x_BLD.mean(dim=1))
        return out


@dataclass(frozen=True)
class HostKind:
    """A host to time: how it is made, the shape of a batch, and the slot and kernel of its seed."""

    make: Callable[[], nn.Module]
    batch: tuple[int, ...]
    slot: str
    blueprint: str


def host_kinds(device: torch.device) -> dict[str, HostKind]:
    """Return hosts whose step takes 5 ms or more on such a device."""
    if device.type == "cuda":
        return {
            "mlp": HostKind(lambda: wide_mlp(4096), (2048, 4096), "1", "BP003"),
            "transformer": HostKind(lambda: SmallTransformer(512, 8), (32, 128, 512), "layers.3", "BP003"),
        }
    return {
        "mlp": HostKind(lambda: wide_mlp(768), (128, 768), "1", "BP003"),
        "transformer": HostKind(lambda: SmallTransformer(96, 3), (32, 32, 96), "layers.1", "BP003"),
    }


def lowest_parameters(blueprint_id: str) -> dict[str, float]:
    """Return a blueprint's parameters, each at its lower bound."""
    return {name: low for name, (low, _) in catalogue()[blueprint_id].parameters.items()}


def shipped_runtime(blueprint_id: str) -> InMemoryRuntime:
    """Return a runtime that builds a shipped blueprint on the spot, so that nothing else is timed."""

    def build(request: ly.KernelRequestSpec, generator: torch.Generator) -> nn.Module:
        return catalogue()[blueprint_id].build(
            layout=request.layout,
            shape=list(request.in_shape),
            out_shape=list(request.out_shape),
            parameters=dict(request.parameters),
            generator=generator,
        )

    return InMemoryRuntime({blueprint_id: build})


class Arm:
    """A bare loop: a host with its optimiser on one fixed batch. `compiled` trains the compiled host."""

    def __init__(self, kind: HostKind, device: torch.device, *, compiled: bool = False) -> None:
        torch.manual_seed(0)
        self.device = device
        self.model = kind.make().to(device)
        self.forward: Callable[[Tensor], Tensor] = torch.compile(self.model) if compiled else self.model
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=1e-6
        )  # Learning is not what is timed, and a host that knows its batch by heart starves a seed.
        self.inputs = torch.randn(kind.batch, device=device)
        self.targets = torch.randint(0, _CLASSES, (kind.batch[0],), device=device)
        self.kind = kind

    def step(self) -> None:
        """Take one step; it may still be under way on the device."""
        self.optimizer.zero_grad()
        functional.cross_entropy(self.forward(self.inputs), self.targets).backward()
        self.optimizer.step()

    def steps(self, count: int) -> None:
        """Take `count` steps and wait for the device."""
        for _ in range(count):
            self.step()
        self.wait()

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class GrowingArm(Arm):
    """The same loop with Kasmina at its side."""

    def __init__(
        self,
        kind: HostKind,
        device: torch.device,
        *,
        compiled: bool = False,
        config: KasminaConfig,
        isolation: Isolation | None = None,
    ) -> None:
        super().__init__(kind, device, compiled=compiled)
        slots = discover_slots(self.model, self.inputs, "auto")
        if compiled:
            add_sockets(self.model, slots)
        self.manager = KasminaSeedManager(
            self.model,
            slots,
            runtime=shipped_runtime(kind.blueprint),
            run_id="benchmark",
            seed=1,
            loss_fn=functional.cross_entropy,
            probe=[(self.inputs, self.targets)],
            optimizer=self.optimizer,
            config=replace(config, blend_epochs=1.0),
            isolation=isolation,
        )
        self.epoch = 0
        self.log: list[EventMessage] = []

    def step(self) -> None:
        """Take one step, the seeds' included; it may still be under way on the device."""
        self.manager.before_step()
        super().step()
        self.manager.after_step(self.inputs, self.targets)

    def edge(self, operation: ly.SeedOperation | None = None, *, seed_id: str = "") -> str:
        """Close an epoch and carry out one operation at its edge, if any; return the id of its seed.

        Raises:
            RuntimeError: it was not applied, or a seed had a fault.
        """
        self.epoch += 1
        if self.manager.end_epoch(self.epoch):
            raise RuntimeError("a seed had a fault")
        command = None if operation is None else self._command(operation, seed_id)
        decision = self.manager.handle_command(command, epoch=self.epoch, append=self.log.append)
        if command is not None and decision.result != ly.COMMAND_RESULT_APPLIED:
            raise RuntimeError(f"{ly.SeedOperation.Name(command.seed_operation.operation)}: {decision.reason}")
        return decision.seed_id

    def _command(self, operation: ly.SeedOperation, seed_id: str) -> ly.AdaptationCommand:
        wish = ly.CommandSeedOperation(operation=operation)
        if operation == ly.SEED_OP_GERMINATE:
            wish.slot, wish.blueprint_id = self.kind.slot, self.kind.blueprint
            wish.parameters.update(lowest_parameters(self.kind.blueprint))
        elif operation == ly.SEED_OP_CULL:
            wish.parameters["fall_steps"] = 0.0
        command = ly.AdaptationCommand(
            command_id=f"command-{self.epoch}",
            command_type=ly.COMMAND_SEED,
            target_seed_id=seed_id,
            training_run_id="benchmark",
            epoch=self.epoch,
            seed_operation=wish,
        )
        command.meta.event_id = command.command_id
        return command

    def germinate(self) -> str:
        """Germinate a seed, which then trains in shadow; return its id."""
        return self.edge(ly.SEED_OP_GERMINATE)

    def until_grafting(self, steps: int) -> None:
        """Train as many epochs of `steps` steps as a seed in TRAINING needs before it may blend, but for the edge."""
        for _ in range(_TRAINING_EPOCHS - 1):
            self.steps(steps)
            self.edge()
        self.steps(steps)


def share_of_seed(arm: GrowingArm, plain: Arm, steps: int) -> float:
    """Return the multiply-adds of the seed's own passes over those of the host's training, for `steps` steps."""
    host = count_multiply_adds(plain.step)
    before = arm.manager.multiply_adds
    arm.steps(steps)
    return (arm.manager.multiply_adds - before) / (host * steps)
