"""Loops to time side by side: a plain one, and the same with Kasmina at its side in some state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.core.ports import EdgeDecision
from esper.karn import catalogue
from esper.kasmina import KasminaConfig, KasminaSeedManager, discover_slots
from esper.kasmina._passes import Isolation
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
            "mlp": HostKind(lambda: wide_mlp(4096), (4096, 4096), "1", "BP003"),
            "transformer": HostKind(lambda: SmallTransformer(512, 8), (64, 128, 512), "layers.3", "BP003"),
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
    """A host with its optimiser on one fixed batch; `step` is one step of training.

    `compiled` trains the compiled host. Without `managed` nothing of Esper is in the loop.
    """

    def __init__(
        self,
        kind: HostKind,
        device: torch.device,
        *,
        managed: bool,
        compiled: bool = False,
        config: KasminaConfig | None = None,
        isolation: Isolation | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.device = device
        self.model = kind.make().to(device)
        self.forward: Callable[[Tensor], Tensor] = torch.compile(self.model) if compiled else self.model
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        self.inputs = torch.randn(kind.batch, device=device)
        self.targets = torch.randint(0, _CLASSES, (kind.batch[0],), device=device)
        self.kind = kind
        self.manager = self._managed(config, isolation) if managed else None
        self.epoch = 0
        self.log: list[EventMessage] = []

    def _managed(self, config: KasminaConfig | None, isolation: Isolation | None) -> KasminaSeedManager:
        return KasminaSeedManager(
            self.model,
            discover_slots(self.model, self.inputs, "auto"),
            runtime=shipped_runtime(self.kind.blueprint),
            run_id="benchmark",
            seed=1,
            loss_fn=functional.cross_entropy,
            probe=[(self.inputs, self.targets)],
            optimizer=self.optimizer,
            config=replace(config or KasminaConfig(), blend_epochs=1.0),
            isolation=isolation,
        )

    def step(self) -> None:
        """Take one step; it may still be under way on the device."""
        if self.manager is not None:
            self.manager.before_step()
        self.optimizer.zero_grad()
        functional.cross_entropy(self.forward(self.inputs), self.targets).backward()
        self.optimizer.step()
        if self.manager is not None:
            self.manager.after_step(self.inputs, self.targets)

    def steps(self, count: int) -> None:
        """Take `count` steps and wait for the device."""
        for _ in range(count):
            self.step()
        self.wait()

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def command(self, operation: ly.SeedOperation, *, seed_id: str = "") -> EdgeDecision:
        """Close an epoch and carry out one operation at its edge; it must be applied."""
        assert self.manager is not None, "a plain loop has no seeds"
        self.close_epoch()
        wish = ly.CommandSeedOperation(operation=operation)
        if operation == ly.SEED_OP_GERMINATE:
            wish.slot, wish.blueprint_id = self.kind.slot, self.kind.blueprint
            wish.parameters.update(lowest_parameters(self.kind.blueprint))
        command = ly.AdaptationCommand(
            command_id=f"command-{self.epoch}",
            command_type=ly.COMMAND_SEED,
            target_seed_id=seed_id,
            training_run_id="benchmark",
            epoch=self.epoch,
            seed_operation=wish,
        )
        command.meta.event_id = command.command_id
        decision = self.manager.handle_command(command, epoch=self.epoch, append=self.log.append)
        assert decision.result == ly.COMMAND_RESULT_APPLIED, decision.reason
        return decision

    def close_epoch(self) -> None:
        """Close an epoch; a seed must not be at fault."""
        assert self.manager is not None, "a plain loop has no epochs"
        self.epoch += 1
        assert not self.manager.end_epoch(self.epoch), "a seed had a fault"

    def germinate(self) -> str:
        """Germinate a seed, which then trains in shadow; return its id."""
        return self.command(ly.SEED_OP_GERMINATE).seed_id

    def grafted(self, steps: int) -> str:
        """Germinate a seed and train it until it blends; return its id."""
        seed_id = self.germinate()
        for _ in range(_TRAINING_EPOCHS - 1):
            self.steps(steps)
            self.close_epoch()
        self.steps(steps)
        self.command(ly.SEED_OP_START_GRAFTING, seed_id=seed_id)
        return seed_id


def state_bytes(arm: Arm) -> Mapping[str, bytes]:
    """Return the host's weights, bit for bit; the seeds' are left out."""
    state = arm.model.state_dict()
    return {name: value.cpu().numpy().tobytes() for name, value in state.items() if "esper_" not in name}


def share_of_seed(arm: Arm, plain: Arm, steps: int) -> float:
    """Return the multiply-adds of the seed's own passes over those of the host's training, for `steps` steps."""
    from torch.utils.flop_counter import FlopCounterMode

    assert arm.manager is not None
    with FlopCounterMode(display=False) as counter:
        plain.step()
    host = counter.get_total_flops() / 2
    before = arm.manager.multiply_adds
    arm.steps(steps)
    return (arm.manager.multiply_adds - before) / (host * steps)


def names(arms: Sequence[Arm]) -> list[str]:
    """Return what the arms' devices are called."""
    return sorted({torch.cuda.get_device_name(arm.device) if arm.device.type == "cuda" else "cpu" for arm in arms})
