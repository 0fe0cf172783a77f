"""The words of a return to a checkpoint: when a run does it, what is about to be done, and why it cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from esper.core.ports import EdgeDecision
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.tolaria._config import TrainingLoopConfig
from esper.tolaria.loop._faults import TrainingDiverged

UNAVAILABLE: Final = "rollback_unavailable:"


@dataclass(frozen=True)
class ReturnLimits:
    """When a run returns by itself, at most `rollbacks_max` times; each leaves `rate_factor` of the rate."""

    spike_factor: float = 10.0
    rollbacks_max: int = 3
    rate_factor: float = 0.5

    @classmethod
    def of(cls, config: TrainingLoopConfig) -> ReturnLimits:
        """Return the limits that a run's request asks for."""
        return cls(config.loss_spike_factor, config.rollbacks_max, config.rollback_rate_factor)


@dataclass(frozen=True)
class Return:
    """A return that is about to be done: where to, and what is said of it."""

    content: bytes
    event: ly.RunRolledBack
    #: What is said of seeds.
    moves: tuple[EventMessage, ...]


@dataclass(frozen=True)
class Ruling:
    """What a run order, or a fault, comes to at an edge; `back` is set where the run returns to a checkpoint."""

    decision: EdgeDecision
    back: Return | None = None


class Unavailable(Exception):
    """A return that cannot be done, with its reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = UNAVAILABLE + reason


def wanted_epoch(command: ly.AdaptationCommand) -> int | None:
    """Return the epoch that a ROLLBACK names, None where it names none."""
    if command.WhichOneof("payload") not in (None, "rollback_payload"):
        raise Malformed("payload")
    wishes = dict(command.rollback_payload.items())
    if not wishes:
        return None
    epoch = wishes.pop("to_epoch", None)
    if wishes or not isinstance(epoch, float) or not epoch.is_integer() or not 0 < epoch < 2**31:
        raise Malformed("rollback_epoch")
    return int(epoch)


class Malformed(Unavailable):
    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.reason = f"malformed_command:{what}"


def diverged(run_id: str, packet: ly.SystemStatePacket, fault: str, *, returned: int) -> TrainingDiverged:
    times = f" after {returned} returns to a checkpoint" if returned else ""
    return TrainingDiverged(
        f"run {run_id} diverged in epoch {packet.current_epoch}",
        cause=f"the held-out loss is {packet.validation_loss}{times} ({fault})",
        next_step="Ask for a lower learning_rate",
    )
