"""What the risk gate goes by in one run: fixed defaults, over which the run's request may put its own.

Limits come from the request alone, which stands in the log, never from the process that decides: whoever decides a
packet again goes by the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from esper.tamiyo._policy import BadPolicyParameters

#: Policy parameters of this prefix are the gate's and reach no policy.
PREFIX: Final = "risk."


@dataclass(frozen=True)
class RiskLimits:
    """The limits of one run; each field is the policy parameter `risk.` + its name. 0 switches a rule off."""

    #: Relative rise of the validation loss over its recent median that counts as a spike.
    loss_rise_max: float = 0.15
    #: Epochs that one pause lasts. Two: one for the host to come back to itself, one to see whether it did.
    pause_epochs: int = 2
    #: Risk from which on a blueprint is not grafted, whoever approved it; above 1 none is too risky.
    blueprint_max: float = 0.8
    #: Parameters, as a multiple of the run's first, beyond which nothing is added.
    parameters_ratio_max: float = 0.0
    #: Multiply-adds that the run comes to at its present price, as a multiple of what it began with, beyond which
    #: nothing germinates.
    multiply_adds_ratio_max: float = 0.0
    #: Epochs of one run for which one emergency signal holds it back, however long the signal stands.
    conservative_epochs: int = 10
    #: 1: the run is in conservative mode from its first epoch to its last.
    conservative: float = 0.0

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, float]) -> RiskLimits:
        """Return the limits that a request's policy parameters set; parameters without the prefix are left alone.

        Raises:
            BadPolicyParameters: one with the prefix names no limit, or its value is out of its range.
        """
        given = {name.removeprefix(PREFIX): value for name, value in parameters.items() if name.startswith(PREFIX)}
        for name, value in given.items():
            _check(name, value)
        whole = {name: int(value) if name in _WHOLE else float(value) for name, value in given.items()}
        return cls(**whole)  # type: ignore[arg-type]  # the whole ones are ints, and every name was checked

    @classmethod
    def of(cls, parameters: Mapping[str, float]) -> RiskLimits:
        """Return the limits, the defaults where they cannot be used: such a run is refused growth by its policy."""
        try:
            return cls.from_parameters(parameters)
        except BadPolicyParameters:
            return cls()


_NAMES: Final = tuple(field.name for field in fields(RiskLimits))
_WHOLE: Final = frozenset({"pause_epochs", "conservative_epochs"})
#: No run has more epochs, and no figure here has a use beyond it.
_MOST: Final = 1e9


def without_limits(parameters: Mapping[str, float]) -> dict[str, float]:
    """Return the parameters that are the policy's own."""
    return {name: value for name, value in parameters.items() if not name.startswith(PREFIX)}


def _check(name: str, value: float) -> None:
    if name not in _NAMES:
        raise BadPolicyParameters(
            f"the risk gate has no limit {PREFIX + name!r}",
            cause=f"its limits are: {', '.join(PREFIX + known for known in _NAMES)}",
            next_step="correct the name or leave it out",
        )
    most = 1.0 if name == "conservative" else _MOST
    whole = name in _WHOLE or name == "conservative"
    if not (math.isfinite(value) and 0.0 <= value <= most) or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise BadPolicyParameters(
            f"the risk gate cannot use {PREFIX}{name}={value:g}",
            cause=f"{PREFIX}{name} is {kind} from 0 to {most:g}",
            next_step="correct the limit or leave it out",
        )
