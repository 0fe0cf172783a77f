"""When training has left the ground: a held-out loss that is no number, or far above what it was; pure.

What is measured is a function of the run's own packets and returns, so that every attempt at it finds the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Final

from esper.core.errors import OperationFailed
from esper.leyline import messages as ly

LOSS_NOT_FINITE: Final = "fault:loss_not_finite"
LOSS_SPIKE: Final = "fault:loss_spike"
#: Losses that a spike is measured against; fewer than the least tell nothing yet.
_WINDOW: Final = 5
_WINDOW_MIN: Final = 2


class TrainingDiverged(OperationFailed):
    """Training left the finite numbers, or spiked, and there is nothing left to return to."""


@dataclass(frozen=True)
class LossHistory:
    """Held-out losses by epoch, and the epoch that each follows on; grows by one entry an epoch and no faster."""

    losses: Mapping[int, float] = field(default_factory=dict)
    #: From an epoch at whose edge the run returned, to the epoch that it returned to.
    returns: Mapping[int, int] = field(default_factory=dict)

    def fold(self, event: ly.SystemStatePacket | ly.CommandOutcome) -> LossHistory:
        """Return the history after a packet or an outcome of the run."""
        if isinstance(event, ly.SystemStatePacket):
            return replace(self, losses={**self.losses, event.current_epoch: event.validation_loss})
        if event.HasField("rolled_back"):
            return replace(self, returns={**self.returns, event.epoch: event.rolled_back.to_epoch})
        return self

    def before(self, epoch: int) -> int:
        """Return the epoch whose end `epoch` was trained on from; 0 is the run's beginning."""
        return self.returns.get(epoch - 1, epoch - 1)

    def line(self, epoch: int) -> list[int]:
        """Return the epochs that led to `epoch`, the latest first; those that a return left behind are not in it."""
        found = []
        while (epoch := self.before(epoch)) > 0:  # ends at the run's beginning: each is less than the one before
            found.append(epoch)
        return found

    def fault(self, packet: ly.SystemStatePacket, *, spike_factor: float) -> str:
        """Return what is wrong with the epoch of `packet`; "" where nothing is.

        A spike is a loss above `spike_factor` times the median of the last five, and above the run's first.
        """
        loss, epoch = packet.validation_loss, packet.current_epoch
        if not math.isfinite(loss):
            return LOSS_NOT_FINITE
        window = [self.losses[earlier] for earlier in self.line(epoch)[:_WINDOW] if earlier in self.losses]
        if len(window) < _WINDOW_MIN or not all(map(math.isfinite, window)):
            return ""
        first = self.losses.get(1, math.inf)
        return LOSS_SPIKE if loss > spike_factor * median(window) and loss > first else ""
