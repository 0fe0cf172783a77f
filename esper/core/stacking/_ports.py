"""What the trainer of a stack needs of the one who grafts on all its members."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from esper.core.ports import EdgeDecision
from esper.core.stacking._programs import Tap
from esper.core.stacking._steps import StepClock
from esper.leyline import messages as ly
from esper.leyline.registry import EventMessage

# Legend: S steps of an epoch, N members, B samples of a batch.


class MemberGrafts(Protocol):
    """One member's seeds, as its state packet shows them; the words of `esper.core.ports.GraftController`."""

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the seeds' own passes so far."""

    def multiply_adds_per_sample(self) -> int:
        """Multiply-adds that one sample's forward now spends in seeds."""

    def parameters(self) -> int:
        """Parameters of the seeds that take part in the forward."""

    def slot_states(self) -> list[ly.SlotState]:
        """Return every slot with what holds it."""

    def seed_states(self) -> list[ly.SeedState]:
        """Return every seed that is on the host."""

    def growth(self) -> ly.GrowthState | None:
        """Return what holds growth back in the coming epoch; None where nothing does."""

    def summaries(self) -> list[ly.SeedSummary]:
        """Return every seed of the run with its last stage."""


class StackGrafts(Protocol):
    """Grafts on the hosts of a stack. A trainer calls, for each epoch:

    `begin_epoch`; per step `tap`, then hosts and `leaves` get their gradients and the hosts their step, then
    `after_step`; `close_epoch`, `end_epoch`, `decide`; for every event that the log has `fold`, and `commit` when all
    of an edge are folded. Lists have one entry a member, in order; a member that is over has None for a command.
    """

    def members(self) -> Sequence[MemberGrafts]:
        """Return each member's seeds."""

    def begin_epoch(
        self, epoch: int, *, rates_SN: NDArray[np.float64], batches: Sequence[int], clock: StepClock
    ) -> None:
        """Make ready for the steps of an epoch: the hosts' learning rates, and the samples of each batch."""

    def structure(self) -> Hashable:
        """Return what stays equal as long as each step but the last asks for the same operations on the same tensors.

        Asked between `begin_epoch` and the first step.
        """

    def tap(self) -> Tap | None:
        """Return what lets the hosts hear their seeds in training; None where no seed takes part."""

    def quiet_tap(self) -> Tap | None:
        """Return the same for evaluation: nothing of a seed changes."""

    def leaves(self) -> list[Tensor]:
        """Return the parameters of all seeds that take part, to be differentiated with the hosts'."""

    def after_step(self, x_NB: Tensor, y_NB: Tensor, gradients: Sequence[Tensor]) -> None:
        """Let the seeds learn: those that take part by `gradients` (of `leaves`), the others in their shadows."""

    def close_epoch(self) -> None:
        """Close the figures of the epoch's steps, before anything is measured; waits for the device."""

    def end_epoch(self, epoch: int, held_out: Sequence[float]) -> list[list[EventMessage]]:
        """Measure the seeds; `held_out` are the hosts' losses on the probe. Return the moves that faults force."""

    def decide(
        self,
        commands: Sequence[ly.AdaptationCommand | None],
        *,
        epoch: int,
        live: Sequence[bool],
        recorded: Sequence[ly.CommandOutcome | None],
    ) -> list[EdgeDecision | None]:
        """Judge each live member's command without changing anything; None for one that is over."""

    def fold(self, member: int, event: EventMessage) -> None:
        """Take note of an acknowledged event of a member."""

    def commit(self) -> None:
        """Let all that was folded since the last time change the networks."""

    def weights(self) -> list[Mapping[str, Tensor]]:
        """Return each member's seed tensors on the CPU, by the names that the state digest takes them by."""
