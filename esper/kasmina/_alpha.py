"""Alpha: how much of a seed's output the host hears, from 0 (nothing) to 1 (all of it)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from esper.core.errors import UsageError

AlphaCurve = Literal["linear", "cosine", "sigmoid"]
ALPHA_CURVES: Final[tuple[str, ...]] = get_args(AlphaCurve)

#: At +-6 the logistic function is within 0.25 % of its limits; the curve is rescaled to meet them exactly.
_SIGMOID_REACH: Final = 6.0


def _logistic(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


@dataclass(frozen=True)
class AlphaSchedule:
    """A monotone rise from exactly 0.0 at step 0 to exactly 1.0 at step `steps`.

    Curves: linear; cosine, (1 - cos(pi t)) / 2; sigmoid, the logistic function rescaled to its ends.

    Raises:
        UsageError: the curve is unknown or `steps` is below 1.
    """

    curve: AlphaCurve
    steps: int

    def __post_init__(self) -> None:
        if self.curve not in ALPHA_CURVES:
            raise UsageError(
                f"alpha cannot follow the curve {self.curve!r}",
                cause="it is not one of " + ", ".join(ALPHA_CURVES),
                next_step="choose one of them",
            )
        if self.steps < 1:
            raise UsageError(f"alpha cannot rise in {self.steps} steps", next_step="give at least 1")

    def at(self, step: int) -> float:
        """Return alpha after `step` steps; 0.0 before the first and 1.0 from the last on."""
        if step <= 0:
            return 0.0
        if step >= self.steps:
            return 1.0
        t = step / self.steps
        if self.curve == "linear":
            return t
        if self.curve == "cosine":
            return (1.0 - math.cos(math.pi * t)) / 2.0
        low, high = _logistic(-_SIGMOID_REACH), _logistic(_SIGMOID_REACH)
        return (_logistic(_SIGMOID_REACH * (2.0 * t - 1.0)) - low) / (high - low)


class AlphaBlender(nn.Module):
    """Scales a seed's output by alpha, which lives in a 0-d float32 buffer and is changed in place.

    A tensor, not a Python number, so that compiled code and captured graphs see it move without being
    built again. `value` mirrors it on the Python side, so that no step has to wait for a device.
    """

    alpha: Tensor

    def __init__(self, *, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("alpha", torch.zeros((), dtype=torch.float32, device=device))
        self.value = 0.0
        self._schedule: AlphaSchedule | None = None
        self._step = 0

    def begin(self, schedule: AlphaSchedule) -> None:
        """Start to rise along `schedule` from 0."""
        self._schedule = schedule
        self._step = 0
        self._set(schedule.at(0))

    def advance_alpha(self) -> float:
        """Take one step of the schedule and return the new alpha; without a schedule nothing moves."""
        if self._schedule is not None and self._step < self._schedule.steps:
            self._step += 1
            self._set(self._schedule.at(self._step))
        return self.value

    def facts(self) -> dict[str, Any]:
        """Return how far alpha has risen, for a checkpoint."""
        schedule = self._schedule
        rise = None if schedule is None else {"curve": schedule.curve, "steps": schedule.steps}
        return {"value": self.value, "step": self._step, "schedule": rise}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Go on from where `facts` says that alpha had come to."""
        rise = facts["schedule"]
        self._schedule = None if rise is None else AlphaSchedule(rise["curve"], rise["steps"])
        self._step = int(facts["step"])
        self._set(float(facts["value"]))

    def _set(self, value: float) -> None:
        self.value = value
        self.alpha.fill_(value)

    def forward(self, contribution: Tensor) -> Tensor:
        """Return alpha times `contribution`, in its dtype and shape."""
        return contribution * self.alpha
