"""What an operator may want of a run as a whole, as the command that says it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from esper.core.errors import UsageError
from esper.leyline import messages as ly

Parameters = Mapping[str, float]


def _rollback(parameters: Parameters, reason: str) -> ly.AdaptationCommand:
    command = ly.AdaptationCommand(command_type=ly.COMMAND_ROLLBACK)
    epoch = _whole(parameters, "rollback", "to_epoch")
    command.rollback_payload.update({} if epoch is None else {"to_epoch": epoch})
    return _because(command, reason)


def _optimizer(parameters: Parameters, reason: str) -> ly.AdaptationCommand:
    from esper.tolaria import OPTIMIZER_BOUNDS  # torch comes with it

    _known("optimizer", parameters, OPTIMIZER_BOUNDS)
    if not parameters:
        raise UsageError(
            "optimizer needs something to set",
            cause=f"it can set {', '.join(sorted(OPTIMIZER_BOUNDS))}",
            next_step="Write --set learning_rate_factor=0.5, say",
        )
    for name, value in parameters.items():
        low, high = OPTIMIZER_BOUNDS[name]
        if not low <= value <= high:
            raise UsageError(f"{name} = {value:g} cannot be set", cause=f"it is from {low:g} to {high:g}")
    wish = ly.CommandOptimizerAdjustment(optimizer_id="host", hyperparameters=dict(parameters))
    return _because(ly.AdaptationCommand(command_type=ly.COMMAND_OPTIMIZER, optimizer_adjustment=wish), reason)


def _pause(parameters: Parameters, reason: str) -> ly.AdaptationCommand:
    epochs = _whole(parameters, "pause", "epochs") or 0
    return ly.AdaptationCommand(command_type=ly.COMMAND_PAUSE, pause=ly.CommandPause(epochs=epochs, rationale=reason))


def _resume(parameters: Parameters, reason: str) -> ly.AdaptationCommand:
    _known("resume", parameters, ())
    return ly.AdaptationCommand(command_type=ly.COMMAND_PAUSE, pause=ly.CommandPause(resume=True, rationale=reason))


def _breaker(state: ly.CircuitBreakerState, name: str) -> Callable[[Parameters, str], ly.AdaptationCommand]:
    def wish(parameters: Parameters, reason: str) -> ly.AdaptationCommand:
        _known(name, parameters, ())
        return ly.AdaptationCommand(
            command_type=ly.COMMAND_CIRCUIT_BREAKER,
            circuit_breaker=ly.CommandCircuitBreaker(desired_state=state, rationale=reason),
        )

    return wish


def _emergency(parameters: Parameters, reason: str) -> ly.AdaptationCommand:
    _known("emergency", parameters, ())
    return _because(ly.AdaptationCommand(command_type=ly.COMMAND_EMERGENCY), reason)


#: By name, what makes the command of numbers and a reason.
RUN_WISHES: Final[Mapping[str, Callable[[Parameters, str], ly.AdaptationCommand]]] = {
    "rollback": _rollback,
    "optimizer": _optimizer,
    "pause": _pause,
    "resume": _resume,
    "open_breaker": _breaker(ly.CIRCUIT_STATE_OPEN, "open_breaker"),
    "close_breaker": _breaker(ly.CIRCUIT_STATE_CLOSED, "close_breaker"),
    "emergency": _emergency,
}


def _because(command: ly.AdaptationCommand, reason: str) -> ly.AdaptationCommand:
    if reason:
        command.annotations["reason"] = reason
    return command


def _known(order: str, parameters: Parameters, names: Mapping[str, object] | tuple[str, ...]) -> None:
    unknown = sorted(set(parameters) - set(names))
    if unknown:
        raise UsageError(
            f"{order} takes no {unknown[0]!r}",
            cause=f"it takes {', '.join(sorted(names))}" if names else "it takes no numbers",
            next_step="Leave it out",
        )


def _whole(parameters: Parameters, order: str, name: str) -> int | None:
    """Return the one whole number that an order may name, at least 1; None where it names none."""
    _known(order, parameters, (name,))
    value = parameters.get(name)
    if value is None:
        return None
    if not 1 <= value < 2**31 or value != int(value):
        raise UsageError(f"{name} = {value:g} cannot be used", cause="it is a whole number, at least 1")
    return int(value)
