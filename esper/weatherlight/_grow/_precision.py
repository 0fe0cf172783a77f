"""Where a loop's loss scaling and learning-rate schedule meet the seeds' own optimisers."""

from __future__ import annotations

from collections.abc import Sequence

from esper.kasmina import KasminaSeedManager
from esper.weatherlight._grow._wishes import LossScaler, RateSchedule, Wishes


class Unscaling:
    """Takes the loss scale out of the seeds' gradients, which the host's own backward left in them.

    The scale is read once a step, after the scaler's update: it is the one of the next backward. One that fell
    tells of a step that overflowed; the host skipped it, so do the seeds.
    """

    def __init__(self, scaler: LossScaler | None) -> None:
        self._scaler = scaler
        self._scale = 1.0 if scaler is None else scaler.get_scale()

    def settle(self, controller: KasminaSeedManager) -> None:
        """Make the seeds' gradients what they would be without scaling, or nothing where the step overflowed."""
        if self._scaler is None:
            return
        used, self._scale = self._scale, self._scaler.get_scale()
        if self._scale < used:
            controller.before_step()
        elif used != 1.0:
            controller.scale_gradients(1.0 / used)


class SeedRate:
    """The share of their own learning rate that seeds train with: the schedule's rate against its highest so far.

    So seeds slow down with the host, and a schedule's own warm-up does not add to theirs.
    """

    def __init__(self, scheduler: RateSchedule | None) -> None:
        self._scheduler = scheduler
        self._highest = 0.0

    def share(self) -> float:
        """Return the present share, in 0..1."""
        rate = _first(self._scheduler)
        self._highest = max(self._highest, rate)
        return rate / self._highest if self._highest > 0.0 else 1.0


def learning_rate(wishes: Wishes) -> float | None:
    """Return the host's present learning rate; None where neither scheduler nor optimiser was given."""
    if wishes.scheduler is not None:
        return _first(wishes.scheduler)
    if wishes.optimizer is not None:
        return float(wishes.optimizer.param_groups[0]["lr"])
    return None


def _first(scheduler: RateSchedule | None) -> float:
    rates: Sequence[object] = scheduler.get_last_lr() if scheduler is not None else ()
    return float(rates[0]) if rates else 0.0  # type: ignore[arg-type]  # a number or a 0-d tensor
