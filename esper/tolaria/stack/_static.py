"""The grafts of a stack whose networks do not grow."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from esper.core.ports import EdgeDecision
from esper.core.stacking import MemberGrafts, StepClock, Tap
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.tolaria.loop._static import StaticController


class StaticStackGrafts:
    """StackGrafts without slots: each member applies COMMAND_CONTINUE and rejects every other command."""

    def __init__(self, members: int) -> None:
        self._members = [StaticController() for _ in range(members)]

    def members(self) -> Sequence[MemberGrafts]:
        return self._members

    def begin_epoch(
        self, epoch: int, *, rates_SN: NDArray[np.float64], batches: Sequence[int], clock: StepClock
    ) -> None:
        """Do nothing: there are no seeds."""

    def structure(self) -> Hashable:
        """Return the same always: there are no seeds."""
        return ()

    def tap(self) -> Tap | None:
        return None

    def quiet_tap(self) -> Tap | None:
        return None

    def leaves(self) -> list[Tensor]:
        return []

    def after_step(self, x_NB: Tensor, y_NB: Tensor, gradients: Sequence[Tensor]) -> None:
        """Do nothing: there are no seeds."""

    def close_epoch(self) -> None:
        """Do nothing: there are no seeds."""

    def end_epoch(self, epoch: int, held_out: Sequence[float]) -> list[list[EventMessage]]:
        return [[] for _ in self._members]

    def decide(
        self,
        commands: Sequence[ly.AdaptationCommand | None],
        *,
        epoch: int,
        live: Sequence[bool],
        recorded: Sequence[ly.CommandOutcome | None],
    ) -> list[EdgeDecision | None]:
        judged = zip(self._members, commands, live, recorded, strict=True)
        return [one.decide(command, epoch=epoch, recorded=was) if goes else None for one, command, goes, was in judged]

    def fold(self, member: int, event: EventMessage) -> None:
        """Do nothing: no event changes a network that does not grow."""

    def commit(self) -> None:
        """Do nothing: nothing was folded."""

    def weights(self) -> list[Mapping[str, Tensor]]:
        return [{} for _ in self._members]
