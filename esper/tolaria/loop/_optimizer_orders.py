"""COMMAND_OPTIMIZER: what a run may change of the host's own optimiser, within which bounds; judged, then done.

The learning rate itself belongs to the schedule. What an order sets is the share of it that the host trains with; it is
kept in the optimiser's groups, so that a checkpoint holds it and a return to one takes it back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from esper.leyline import messages as ly

Group = dict[str, Any]

#: Name of the order's hyperparameter, and of the entry in each group; absent where it is 1.
RATE_FACTOR: Final = "learning_rate_factor"
#: What an order may call the host's optimiser besides the name of its class.
HOST_OPTIMIZER: Final = "host"


@dataclass(frozen=True)
class _Setting:
    """One hyperparameter: its bounds, both allowed, and how a group holds it."""

    low: float
    high: float
    held: Callable[[Group], bool]
    put: Callable[[Group, float], None]


def _plain(name: str) -> tuple[Callable[[Group], bool], Callable[[Group, float], None]]:
    def held(group: Group) -> bool:
        return isinstance(group.get(name), int | float) and not isinstance(group[name], bool)

    def put(group: Group, value: float) -> None:
        group[name] = value

    return held, put


def _beta(index: int) -> tuple[Callable[[Group], bool], Callable[[Group, float], None]]:
    def held(group: Group) -> bool:
        return isinstance(group.get("betas"), tuple | list) and len(group["betas"]) > index

    def put(group: Group, value: float) -> None:
        group["betas"] = tuple(value if at == index else kept for at, kept in enumerate(group["betas"]))

    return held, put


def _put_rate_factor(group: Group, value: float) -> None:
    group[RATE_FACTOR] = value
    if value == 1.0:  # As if nothing had ever been set, byte for byte.
        del group[RATE_FACTOR]


#: The bounds keep training alive, no more: a factor of 10 either way beyond what schedules and searches use.
SETTINGS: Final[Mapping[str, _Setting]] = {
    RATE_FACTOR: _Setting(1e-3, 10.0, lambda group: "lr" in group, _put_rate_factor),
    "weight_decay": _Setting(0.0, 1.0, *_plain("weight_decay")),
    "momentum": _Setting(0.0, 0.999, *_plain("momentum")),
    "beta1": _Setting(0.0, 0.9999, *_beta(0)),
    "beta2": _Setting(0.0, 0.99999, *_beta(1)),
    "eps": _Setting(1e-12, 1e-1, *_plain("eps")),
}


#: Lowest and highest value that an order may set, both allowed, by name.
OPTIMIZER_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    name: (setting.low, setting.high) for name, setting in SETTINGS.items()
}


def adjustment_problem(command: ly.AdaptationCommand, optimizer: torch.optim.Optimizer | None) -> str:
    """Return why an order cannot be carried out on the optimiser (None: the loop gave none); "" if it can."""
    if command.WhichOneof("payload") != "optimizer_adjustment":
        return "malformed_command:no_optimizer_adjustment"
    if optimizer is None:
        return "no_optimizer"
    wish = command.optimizer_adjustment
    if wish.optimizer_id.lower() not in (HOST_OPTIMIZER, type(optimizer).__name__.lower()):
        return f"unknown_optimizer:{wish.optimizer_id}"
    if not wish.hyperparameters:
        return "malformed_command:no_hyperparameters"
    problems = (_problem(name, value, optimizer) for name, value in sorted(wish.hyperparameters.items()))
    return next((problem for problem in problems if problem), "")


def _problem(name: str, value: float, optimizer: torch.optim.Optimizer) -> str:
    setting = SETTINGS.get(name)
    if setting is None or not all(setting.held(group) for group in optimizer.param_groups):
        return f"unknown_hyperparameter:{name}"
    fits = setting.low <= value <= setting.high  # NaN does not
    # Nesterov's look-ahead is made of momentum; torch refuses the one without the other.
    if name == "momentum" and value == 0.0 and any(group.get("nesterov") for group in optimizer.param_groups):
        fits = False
    return "" if fits else f"hyperparameter_out_of_bounds:{name}"


def adjust(optimizer: torch.optim.Optimizer, adjustment: ly.CommandOptimizerAdjustment) -> None:
    """Set what an order that has no problem asks for, in every group."""
    for group in optimizer.param_groups:
        for name, value in sorted(adjustment.hyperparameters.items()):
            SETTINGS[name].put(group, value)


def rate_factor(optimizer: torch.optim.Optimizer) -> float:
    """Return the share of its schedule's learning rate that the host trains with."""
    return float(optimizer.param_groups[0].get(RATE_FACTOR, 1.0))


def set_rate_factor(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set that share in every group, whatever its bounds for orders are."""
    assert math.isfinite(factor), "a learning rate stays a number"
    assert factor > 0, "a host that learns nothing is not trained"
    for group in optimizer.param_groups:
        _put_rate_factor(group, factor)
