"""A user's own task, small enough to train in milliseconds, and controllers and policies to train it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from esper.core.checkpoint import Saved
from esper.core.ports import EdgeDecision
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.tolaria import Host, SlotSpec, Split, StaticController, Task, TrainingSetup

TASK = "tests.tolaria.small:rings"


def _rings(samples: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(samples, 2, generator=generator)
    return Split(points, (points.norm(dim=1) > 1.2).long())


class Noisy(nn.Module):
    """A host with batch norm and dropout: buffers and the global random stream take part."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(8, 2)

    def forward(self, x_BF: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(torch.relu(self.norm(self.body(x_BF)))))
        return out


class Deaf(nn.Module):
    """A host that takes no samples of this task."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 2)

    def forward(self, x_BF: Tensor) -> Tensor:
        out: Tensor = self.head(x_BF)
        return out


class Breaking(nn.Module):
    """A host that fails in training, but not when it is looked at first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)

    def forward(self, x_BF: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("the host broke")
        out: Tensor = self.head(x_BF)
        return out


class Exploding(nn.Module):
    """A host whose output leaves the finite numbers as soon as it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.register_buffer("scale", torch.tensor(1.0))

    def forward(self, x_BF: Tensor) -> Tensor:
        if self.training:
            self.scale.mul_(float("inf"))
        out: Tensor = self.head(x_BF) * self.scale
        return out


class Fragile(Noisy):
    """A host whose weights are spoilt now and then in training: in some epochs of some seeds, and in these always.

    Which they are follows from the epoch's own random stream, whatever grows on the host.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x_BF: Tensor) -> Tensor:
        if self.training and float(torch.rand(())) < 0.01:
            with torch.no_grad():
                self.head.weight.mul_(self.factor)
        return super().forward(x_BF)


class Doomed(Noisy):
    """A host that leaves the finite numbers at its 25th batch, however often it comes by it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, x_BF: Tensor) -> Tensor:
        if self.training:
            self.batches.add_(1)
            if float(self.batches) == 25:
                with torch.no_grad():
                    self.head.weight.fill_(float("nan"))
        return super().forward(x_BF)


def _noisy() -> Host:
    return Host(Noisy(), (SlotSpec("body"),))


def _raising() -> Host:
    raise ZeroDivisionError("in the user's host")


def _frozen() -> Host:
    return Host(nn.Linear(2, 2).requires_grad_(requires_grad=False))


def rings() -> Task:
    """Return two classes inside and outside a ring: inputs [N, 2], 200 train, 64 validation, 64 test."""
    return Task(
        name="rings",
        train=_rings(200, 1),
        validation=_rings(64, 2),
        test=_rings(64, 3),
        classes=2,
        hosts={
            "mlp": _noisy,
            "fragile_nan": lambda: Host(Fragile(float("nan")), (SlotSpec("body"),)),
            "fragile_spike": lambda: Host(Fragile(3e3), (SlotSpec("body"),)),
            "doomed": lambda: Host(Doomed()),
            "deaf": lambda: Host(Deaf()),
            "breaking": lambda: Host(Breaking()),
            "exploding": lambda: Host(Exploding()),
            "failing": lambda: Host(nn.Linear(2, 2), (SlotSpec("no such module"),)),
            "raising": _raising,
            "frozen": _frozen,
            "naked": lambda: nn.Linear(2, 2),  # type: ignore[dict-item, return-value]  # a user's mistake
        },
        batch_size=32,
        epochs=3,
    )


def not_a_task() -> int:
    """Return what no factory should."""
    return 7


def failing() -> Task:
    """Fail as a user's code may."""
    raise ZeroDivisionError("in the user's factory")


NOT_CALLABLE = "a string"


def request(run_id: str = "run-small", **fields: object) -> ly.TrainingRunRequested:
    """Return a request to train the task on its mlp host for 3 epochs."""
    message = ly.TrainingRunRequested(
        run_id=run_id, task=TASK, host="mlp", policy="script", epochs=3, seed=11, device="cpu", re_executable=True
    )
    message.meta.event_id = "0" * 32
    message.MergeFrom(ly.TrainingRunRequested(**fields))  # type: ignore[arg-type]
    return message


def command(packet: ly.SystemStatePacket, command_type: ly.CommandType) -> ly.AdaptationCommand:
    """Return a command that answers `packet`."""
    answer = ly.AdaptationCommand(
        command_id=f"command-{packet.current_epoch}",
        command_type=command_type,
        training_run_id=packet.training_run_id,
        epoch=packet.current_epoch,
        decision_id=f"decision-{packet.current_epoch}",
    )
    answer.meta.event_id = f"command-event-{packet.current_epoch}"
    return answer


Policy = Callable[[ly.SystemStatePacket], ly.AdaptationCommand | None]


def scripted(*types: ly.CommandType | None) -> Policy:
    """Return a policy that answers epoch 1, 2, ... with these types, and with nothing where there is None."""

    def answer(packet: ly.SystemStatePacket) -> ly.AdaptationCommand | None:
        index = packet.current_epoch - 1
        chosen = types[index] if index < len(types) else ly.COMMAND_CONTINUE
        return None if chosen is None else command(packet, chosen)

    return answer


def scheduled(moves: Mapping[int, ly.SeedOperation]) -> Policy:
    """Return a policy that orders these moves of one BYPASS seed at these epochs, whatever the seed has learned."""

    def answer(packet: ly.SystemStatePacket) -> ly.AdaptationCommand:
        operation = moves.get(packet.current_epoch)
        if operation is None:
            return command(packet, ly.COMMAND_CONTINUE)
        ordered = command(packet, ly.COMMAND_SEED)
        ordered.seed_operation.operation = operation
        if operation == ly.SEED_OP_GERMINATE:
            ordered.seed_operation.blueprint_id = "BYPASS"
            ordered.seed_operation.slot = packet.slots[0].slot
        else:
            ordered.target_seed_id = packet.seed_states[0].seed_id
        return ordered

    return answer


def static(_: TrainingSetup) -> StaticController:
    """Make the controller of a network that does not grow."""
    return StaticController()


@dataclass
class NudgingController(StaticController):
    """Applies COMMAND_SEED by moving one weight of the host: growth in the smallest form that shows in a digest.

    `calls` lists what the trainer called, in order. A fault is forced in the epochs of `faults`.
    """

    setup: TrainingSetup
    faults: frozenset[int] = frozenset()
    calls: list[str] = field(default_factory=list)
    nudges: int = 0

    def state(self) -> Mapping[str, Tensor]:
        return {"nudges": torch.tensor(self.nudges)}

    def before_step(self) -> None:
        self.calls.append("before_step")

    def after_step(self, inputs: Tensor, targets: Tensor) -> None:
        self.calls.append("after_step")

    def end_epoch(self, epoch: int) -> list[EventMessage]:
        self.calls.append("end_epoch")
        return [self._move(epoch, "fault")] if epoch in self.faults else []

    def decide(
        self,
        command: ly.AdaptationCommand | None,
        *,
        epoch: int,
        recorded: ly.CommandOutcome | None = None,
        ruled: EdgeDecision | None = None,
    ) -> EdgeDecision:
        self.calls.append("decide")
        if command is None or command.command_type != ly.COMMAND_SEED:
            return super().decide(command, epoch=epoch, recorded=recorded, ruled=ruled)
        events: list[EventMessage] = [
            ly.GateEvaluated(run_id=self.setup.request.run_id, epoch=epoch, passed=True),
            self._move(epoch, "command"),
        ]
        return EdgeDecision(
            result=ly.COMMAND_RESULT_APPLIED,
            seed_id="body.1",
            events=events,
            gate_verdicts={"SEED_GATE_G0_SANITY": True},
        )

    def fold(self, event: EventMessage) -> None:
        self.calls.append(f"fold:{type(event).__name__}")
        if isinstance(event, ly.SeedStageChanged):
            self.nudges += 1
            with torch.no_grad():
                next(self.setup.model.parameters()).view(-1)[0].add_(0.125)

    def checkpoint(self) -> Saved:
        return Saved({"nudges": self.nudges})

    def restore(self, saved: Saved) -> None:
        self.nudges = int(saved.facts["nudges"])

    def _move(self, epoch: int, reason: str) -> ly.SeedStageChanged:
        return ly.SeedStageChanged(
            run_id=self.setup.request.run_id,
            attempt=self.setup.attempt,
            epoch=epoch,
            seed_id="body.1",
            slot="body",
            from_stage=ly.SEED_STAGE_DORMANT,
            to_stage=ly.SEED_STAGE_GERMINATED,
            reason=reason,
        )
