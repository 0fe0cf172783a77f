"""What holds growth back: a pause, a breaker that an order opened, the halt that an emergency leaves; pure.

Changed by the outcomes of commands alone. It is no state of the network: a rollback leaves it as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from esper.kasmina.lifecycle._commands import OPERATOR
from esper.leyline import messages as ly

#: Orders on seeds that are carried out while growth is held: they only take away.
_TAKING_AWAY: Final = frozenset({ly.SEED_OP_CULL, ly.SEED_OP_CANCEL})
#: No run has more epochs.
_EPOCHS_MAX: Final = 2**31 - 1
HALTED: Final = "halted"
PAUSED: Final = "paused"
BREAKER_HELD: Final = "breaker_open:order"


@dataclass(frozen=True)
class Growth:
    """Whether seeds may move and learn. `paused_until` is the last epoch of a pause, 0 until resumed."""

    breaker_held: bool = False
    paused: bool = False
    paused_until: int = 0
    #: Epoch at whose edge an emergency took the seeds off; None while growth is not halted.
    halted_at: int | None = None

    def held(self, epoch: int) -> str:
        """Return why no seed moves or learns in `epoch`, "halted" before "breaker_open:order" before "paused"."""
        if self.halted_at is not None:
            return HALTED
        if self.breaker_held:
            return BREAKER_HELD
        return PAUSED if self.paused and not 0 < self.paused_until < epoch else ""

    def refusal(self, operation: ly.SeedOperation, *, epoch: int) -> str:
        """Return why an order on a seed is refused at the edge after `epoch`; "" where it may be examined."""
        return "" if operation in _TAKING_AWAY else self.held(epoch + 1)

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; nothing where nothing is held."""
        return {} if self == Growth() else asdict(self)

    def message(self, breaker: ly.CircuitBreakerState, *, epoch: int) -> ly.GrowthState | None:
        """Return what the packet of `epoch` says: how the coming epoch stands; None where nothing is held."""
        held = self.held(epoch + 1)
        if not held and breaker == ly.CIRCUIT_STATE_CLOSED:
            return None
        paused = self.paused and not 0 < self.paused_until <= epoch
        return ly.GrowthState(
            breaker=ly.CIRCUIT_STATE_OPEN if self.breaker_held else breaker,
            breaker_held=self.breaker_held,
            paused=paused,
            paused_until_epoch=self.paused_until if paused else 0,
            halted=self.halted_at is not None,
        )

    def fold(self, outcome: ly.CommandOutcome) -> Growth:
        """Return how growth is held after an outcome; only commands that were applied change it."""
        change = _CHANGES.get(outcome.command_type)
        return self if change is None or outcome.result != ly.COMMAND_RESULT_APPLIED else change(self, outcome)


def problem_of(command: ly.AdaptationCommand, growth: Growth, *, epoch: int) -> str:
    """Return why a command about growth as a whole is refused; "" where it is applied."""
    if command.target_seed_id:
        return "malformed_command:target_seed_id"
    if command.command_type == ly.COMMAND_PAUSE:
        return _pause_problem(command, growth, epoch=epoch)
    if command.command_type == ly.COMMAND_CIRCUIT_BREAKER:
        return _breaker_problem(command)
    assert command.command_type == ly.COMMAND_EMERGENCY, "no other command is about growth as a whole"
    return "malformed_command:payload" if command.WhichOneof("payload") else ""


def _pause_problem(command: ly.AdaptationCommand, growth: Growth, *, epoch: int) -> str:
    if command.WhichOneof("payload") not in (None, "pause"):
        return "malformed_command:payload"
    pause = command.pause
    if pause.epochs > _EPOCHS_MAX - epoch:
        return "pause_out_of_bounds:epochs"
    if not pause.resume:
        return ""
    if pause.epochs:
        return "malformed_command:resume_for_epochs"
    if growth.halted_at is not None and command.meta.source != OPERATOR:
        return f"{HALTED}:not_an_operator"
    return "" if growth.paused or growth.halted_at is not None else "not_paused"


def _breaker_problem(command: ly.AdaptationCommand) -> str:
    if command.WhichOneof("payload") != "circuit_breaker":
        return "malformed_command:no_circuit_breaker"
    wanted = command.circuit_breaker.desired_state
    if wanted in (ly.CIRCUIT_STATE_OPEN, ly.CIRCUIT_STATE_CLOSED):
        return ""
    names = ly.CircuitBreakerState
    return f"illegal_breaker_state:{names.Name(wanted) if wanted in names.values() else int(wanted)}"


def _paused(growth: Growth, outcome: ly.CommandOutcome) -> Growth:
    pause = outcome.command.pause
    if pause.resume:
        return replace(growth, paused=False, paused_until=0, halted_at=None)
    return replace(growth, paused=True, paused_until=outcome.epoch + pause.epochs if pause.epochs else 0)


def _broken(growth: Growth, outcome: ly.CommandOutcome) -> Growth:
    return replace(growth, breaker_held=outcome.command.circuit_breaker.desired_state == ly.CIRCUIT_STATE_OPEN)


def _halted(growth: Growth, outcome: ly.CommandOutcome) -> Growth:
    return replace(growth, halted_at=int(outcome.epoch))


_CHANGES: Final[Mapping[int, Any]] = {
    ly.COMMAND_PAUSE: _paused,
    ly.COMMAND_CIRCUIT_BREAKER: _broken,
    ly.COMMAND_EMERGENCY: _halted,
}
