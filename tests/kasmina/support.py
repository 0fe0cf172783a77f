"""Hosts, data and a plain training loop around a seed manager."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.ports import EdgeDecision
from esper.kasmina import KasminaConfig, KasminaSeedManager, discover_slots
from esper.kasmina.grafting._passes import Isolation
from esper.kasmina.household._governor import MemorySensor
from esper.kasmina.testing import InMemoryRuntime, bypass
from esper.leyline import EventMessage
from esper.leyline import messages as ly

RUN_ID = "run-kasmina"
INPUTS, CLASSES = 12, 3
FACTORIES = {"BYPASS": bypass(width=16), "DROPPING": bypass(width=16, dropout=0.3)}


class InputStatistics(nn.Module):
    """Keeps a running mean of what it sees, in eval mode as well, as observers and EMA normalisers do."""

    mean: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))

    def forward(self, x_BF: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(x_BF.detach().mean(dim=0), alpha=0.1)
        return x_BF - 0.1 * self.mean


def mlp() -> nn.Module:
    """Layers with BatchNorm, dropout and a module that writes its buffer in eval mode too."""
    return nn.Sequential(
        InputStatistics(INPUTS),
        nn.Sequential(nn.Linear(INPUTS, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2)),
        nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2)),
        nn.Linear(8, CLASSES),
    )


class ResidualHost(nn.Module):
    """A residual connection around the slot."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(INPUTS, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x_BF: Tensor) -> Tensor:
        h_BF = self.stem(x_BF)
        out: Tensor = self.head(h_BF + self.block(h_BF))
        return out


class TwiceHost(nn.Module):
    """Runs the slot's module twice in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(INPUTS, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x_BF: Tensor) -> Tensor:
        out: Tensor = self.head(self.block(self.block(self.stem(x_BF))))
        return out


class TransformerHost(nn.Module):
    """Three encoder layers with dropout over a sequence of `INPUTS` scalars."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 16)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, dim_feedforward=16, dropout=0.1, batch_first=True) for _ in range(3)
        )
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x_BF: Tensor) -> Tensor:
        h_BLD = self.embed(x_BF.unsqueeze(-1))
        for layer in self.layers:
            h_BLD = layer(h_BLD)
        out: Tensor = self.head(h_BLD.mean(dim=1))
        return out


#: Host factory and the slot that its tests use.
HOSTS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "mlp": (mlp, "1"),
    "residual": (ResidualHost, "block"),
    "twice": (TwiceHost, "block"),
    "transformer": (TransformerHost, "layers.1"),
}


def seeded(factory: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Return a host whose weights come from `seed`."""
    torch.manual_seed(seed)
    return factory()


def batch(step: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """Return batch number `step` of a three-class problem that no linear map solves."""
    generator = torch.Generator().manual_seed(1000 + step)
    x_BF = torch.randn(size, INPUTS, generator=generator)
    return x_BF, (x_BF[:, 0] * x_BF[:, 1] > 0).long() + (x_BF[:, 2] * x_BF[:, 3] > 0.5).long()


PROBE = [batch(-1 - index, size=64) for index in range(2)]


class Loop:
    """A host, its optimiser, a manager, and the log that the manager's events go to."""

    def __init__(
        self,
        model: nn.Module,
        slots: Sequence[str],
        *,
        runtime: InMemoryRuntime | None = None,
        config: KasminaConfig | None = None,
        isolation: Isolation | None = None,
        probe: Sequence[tuple[Tensor, Tensor]] | None = PROBE,
        loss_fn: Callable[[Tensor, Tensor], Tensor] | None = functional.cross_entropy,
        descriptors: Mapping[str, ly.BlueprintDescriptor] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        owned: bool = True,
        memory: MemorySensor | None = None,
        clock: Clock = SYSTEM_CLOCK,
        data: Callable[[int], tuple[Tensor, Tensor]] = batch,
    ) -> None:
        self.data = data
        self.model = model
        self.optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=3e-3)
        self.manager = KasminaSeedManager(
            model,
            discover_slots(model, data(0)[0], slots),
            runtime=runtime or InMemoryRuntime(FACTORIES),
            run_id=RUN_ID,
            seed=7,
            loss_fn=loss_fn,
            probe=probe,
            optimizer=self.optimizer if owned else None,
            descriptors=descriptors,
            config=config or KasminaConfig(warmup_steps=5, blend_epochs=1.0),
            isolation=isolation,
            memory=memory,
            clock=clock,
        )
        self.log: list[EventMessage] = []
        self.outcomes: list[ly.CommandOutcome] = []
        self.losses: list[float] = []
        self.steps = 0
        self.epoch = 0

    def step(self, *, zero_late: bool = False) -> None:
        """Take one step; `zero_late` clears the host's gradients right after its optimiser step instead of before."""
        inputs, targets = self.data(self.steps)
        self.manager.before_step()
        if not zero_late:
            self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.model(inputs), targets)
        loss.backward()
        self.optimizer.step()
        if zero_late:
            self.optimizer.zero_grad()
        self.manager.after_step(inputs, targets)
        self.losses.append(float(loss.detach()))
        self.steps += 1

    def train_epoch(self, steps: int = 10) -> list[EventMessage]:
        """Train one epoch and settle its faults; return their events."""
        self.model.train()
        for _ in range(steps):
            self.step()
        self.epoch += 1
        faults = self.manager.end_epoch(self.epoch)
        for event in faults:
            self.log.append(event)
            self.manager.fold(event)
        return faults

    def order(self, operation: ly.SeedOperation, **fields: object) -> EdgeDecision:
        """Command `operation` at the present edge; append and fold what comes of it."""
        return self.command(seed_command(operation, epoch=self.epoch, **fields))  # type: ignore[arg-type]

    def prune(self, seed_id: str, **limits: float) -> EdgeDecision:
        """Command a structural pruning at the present edge."""
        command = ly.AdaptationCommand(
            command_id=f"command-{self.epoch}",
            command_type=ly.COMMAND_STRUCTURAL_PRUNING,
            target_seed_id=seed_id,
            epoch=self.epoch,
            structural_pruning=ly.CommandStructuralPruning(**limits),
        )
        return self.command(command)

    def command(self, command: ly.AdaptationCommand) -> EdgeDecision:
        """Give any command at the present edge; append and fold what comes of it."""
        decision = self.manager.handle_command(command, epoch=self.epoch, append=self.log.append)
        self.outcomes.append(outcome_of(decision, command, epoch=self.epoch))
        return decision

    def germinate(self, slot: str, blueprint: str = "BYPASS", **parameters: float) -> EdgeDecision:
        """Command a germination in `slot`."""
        return self.order(ly.SEED_OP_GERMINATE, slot=slot, blueprint=blueprint, parameters=parameters)

    def grow(self, slot: str, to: ly.SeedLifecycleStage, blueprint: str = "BYPASS", steps: int = 10) -> str:
        """Take a new seed in `slot` up to a stage by the usual moves, all of which must be applied; return its id."""
        decision = self.germinate(slot, blueprint)
        moves = [
            (ly.SEED_STAGE_BLENDING, ly.SEED_OP_START_GRAFTING, 3),
            (ly.SEED_STAGE_SHADOWING, ly.SEED_OP_STABILIZE, 1),
            (ly.SEED_STAGE_PROBATIONARY, ly.SEED_OP_EVALUATE, 1),
            (ly.SEED_STAGE_FOSSILIZED, ly.SEED_OP_FOSSILIZE, 1),
        ]
        assert decision.result == ly.COMMAND_RESULT_APPLIED, decision.reason
        for stage, operation, epochs in moves:
            if self.manager.lifecycle.stage_of(decision.seed_id) == to:
                break
            for _ in range(epochs):
                self.train_epoch(steps)
            moved = self.order(operation, seed_id=decision.seed_id)
            assert moved.result == ly.COMMAND_RESULT_APPLIED, (stage, moved.reason, list(moved.events))
        assert self.manager.lifecycle.stage_of(decision.seed_id) == to
        return decision.seed_id

    def state(self, seed_id: str) -> ly.SeedState:
        """Return the seed's state as a packet would show it."""
        return next(state for state in self.manager.seed_states() if state.seed_id == seed_id)


def seed_command(
    operation: ly.SeedOperation,
    *,
    epoch: int = 1,
    slot: str = "",
    seed_id: str = "",
    blueprint: str = "",
    parameters: Mapping[str, float] | None = None,
    blend_mode: ly.BlendMode = ly.BLEND_MODE_UNSPECIFIED,
    alpha_curve: ly.AlphaCurve = ly.ALPHA_CURVE_UNSPECIFIED,
    hold: bool = False,
) -> ly.AdaptationCommand:
    """Return a command as a controller would send it."""
    name = f"command-{epoch}"
    command = ly.AdaptationCommand(
        command_id=name,
        command_type=ly.COMMAND_SEED,
        target_seed_id=seed_id,
        training_run_id=RUN_ID,
        epoch=epoch,
        seed_operation=ly.CommandSeedOperation(
            operation=operation,
            blueprint_id=blueprint,
            slot=slot,
            parameters=parameters or {},
            blend_mode=blend_mode,
            alpha_curve=alpha_curve,
            hold=hold,
        ),
    )
    command.meta.event_id = name
    return command


def outcome_of(decision: EdgeDecision, command: ly.AdaptationCommand, *, epoch: int) -> ly.CommandOutcome:
    """Return the outcome that a trainer records for a decision."""
    return ly.CommandOutcome(
        run_id=RUN_ID,
        epoch=epoch,
        result=decision.result,
        reason=decision.reason,
        seed_id=decision.seed_id,
        kernel_digest=decision.kernel_digest,
        gate_verdicts=decision.gate_verdicts,
        choices=decision.choices,
        command=command,
        command_id=command.command_id,
    )


def all_bytes(*modules: nn.Module) -> dict[str, bytes]:
    """Return every parameter and buffer, bit for bit."""
    return {
        f"{index}:{name}": tensor.detach().numpy().tobytes()
        for index, module in enumerate(modules)
        for name, tensor in module.state_dict().items()
    }


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> list[bytes]:
    """Return every tensor of the optimiser's state, bit for bit, in the order of its parameters."""
    return [
        optimizer.state[parameter][name].numpy().tobytes()
        for group in optimizer.param_groups
        for parameter in group["params"]
        for name in sorted(optimizer.state[parameter])
    ]


def outputs(model: nn.Module) -> Tensor:
    """Return the model's outputs on the probe, in eval mode and on copied buffers."""
    training = model.training
    model.eval()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        result: Tensor = torch.func.functional_call(model, buffers, (PROBE[0][0],))
    model.train(training)
    return result
