"""Alpha: how much of a seed's output the host hears, from 0 (nothing) to 1 (all of it)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from esper.core.errors import UsageError
from esper.leyline import messages as ly

AlphaCurve = Literal["linear", "cosine", "sigmoid"]
ALPHA_CURVES: Final[tuple[str, ...]] = get_args(AlphaCurve)
#: The contract's word for each curve.
CURVE_WORDS: Final[Mapping[AlphaCurve, ly.AlphaCurve]] = {
    "linear": ly.ALPHA_CURVE_LINEAR,
    "cosine": ly.ALPHA_CURVE_COSINE,
    "sigmoid": ly.ALPHA_CURVE_SIGMOID,
}

CURVE_NAMES: Final[Mapping[ly.AlphaCurve, AlphaCurve]] = {word: name for name, word in CURVE_WORDS.items()}

#: At +-6 the logistic function is within 0.25 % of its limits; the curve is rescaled to meet them exactly.
_SIGMOID_REACH: Final = 6.0


def _logistic(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


@dataclass(frozen=True)
class AlphaSchedule:
    """A monotone way from exactly `start` at step 0 to exactly `end` at step `steps`; a rise from 0 to 1 by default.

    Curves: linear; cosine, (1 - cos(pi t)) / 2; sigmoid, the logistic function rescaled to its ends.

    Raises:
        UsageError: the curve is unknown or `steps` is below 1.
    """

    curve: AlphaCurve
    steps: int
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if self.curve not in ALPHA_CURVES:
            raise UsageError(
                f"alpha cannot follow the curve {self.curve!r}",
                cause="it is not one of " + ", ".join(ALPHA_CURVES),
                next_step="choose one of them",
            )
        if self.steps < 1:
            raise UsageError(f"alpha cannot move in {self.steps} steps", next_step="give at least 1")

    def at(self, step: int) -> float:
        """Return alpha after `step` steps; `start` before the first and `end` from the last on."""
        if step <= 0:
            return self.start
        if step >= self.steps:
            return self.end
        return self.start + (self.end - self.start) * self._way(step / self.steps)

    def _way(self, t: float) -> float:
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
        """Start to move along `schedule`, from where it starts."""
        self._schedule = schedule
        self._step = 0
        self._set(schedule.at(0))

    def advance_alpha(self) -> float:
        """Take one step of the schedule and return the new alpha; without a schedule nothing moves."""
        if self._schedule is not None and self._step < self._schedule.steps:
            self._step += 1
            self._set(self._schedule.at(self._step))
        return self.value

    @property
    def curve(self) -> AlphaCurve | None:
        """The curve that alpha moves along, or moved last; None before it began."""
        return None if self._schedule is None else self._schedule.curve

    @property
    def steps_left(self) -> int:
        """Steps until alpha stands where its schedule ends; 0 without a schedule."""
        return 0 if self._schedule is None else self._schedule.steps - self._step

    def facts(self) -> dict[str, Any]:
        """Return how far alpha has come, for a checkpoint."""
        rise = None if self._schedule is None else asdict(self._schedule)
        return {"value": self.value, "step": self._step, "schedule": rise}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Go on from where `facts` says that alpha had come to."""
        rise = facts["schedule"]
        self._schedule = None if rise is None else AlphaSchedule(**rise)
        self._step = int(facts["step"])
        self._set(float(facts["value"]))

    def _set(self, value: float) -> None:
        self.value = value
        self.alpha.fill_(value)

    def forward(self, contribution: Tensor) -> Tensor:
        """Return alpha times `contribution`, in its dtype and shape."""
        return contribution * self.alpha
