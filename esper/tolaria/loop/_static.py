"""The controller of a network that does not grow."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from esper.core.checkpoint import Saved
from esper.core.ports import EdgeDecision
from esper.leyline import EventMessage
from esper.leyline import messages as ly


class StaticController:
    """A GraftController without slots: a run under it is plain training, recorded all the same.

    It applies COMMAND_CONTINUE, which changes nothing, and rejects every other command.
    """

    @property
    def multiply_adds(self) -> int:
        return 0

    def multiply_adds_per_sample(self) -> int:
        return 0

    def parameters(self) -> int:
        return 0

    def state(self) -> Mapping[str, Tensor]:
        return {}

    def slot_states(self) -> list[ly.SlotState]:
        return []

    def seed_states(self) -> list[ly.SeedState]:
        return []

    def summaries(self) -> list[ly.SeedSummary]:
        return []

    def figures(self) -> Mapping[str, float]:
        return {}

    def notices(self) -> list[ly.TelemetryEvent]:
        return []

    def close(self) -> None:
        """Do nothing: nothing works beside the run."""

    def before_step(self) -> None:
        """Do nothing: there are no seeds."""

    def after_step(self, inputs: Tensor, targets: Tensor) -> None:
        """Do nothing: there are no seeds."""

    def end_epoch(self, epoch: int) -> list[EventMessage]:
        return []

    def decide(
        self,
        command: ly.AdaptationCommand | None,
        *,
        epoch: int,
        recorded: ly.CommandOutcome | None = None,
        ruled: EdgeDecision | None = None,
    ) -> EdgeDecision:
        if ruled is not None:
            return ruled
        if command is None:
            return EdgeDecision(result=ly.COMMAND_RESULT_NONE)
        if command.command_type == ly.COMMAND_CONTINUE:
            return EdgeDecision(result=ly.COMMAND_RESULT_APPLIED)
        return EdgeDecision(result=ly.COMMAND_RESULT_REJECTED, reason="unsupported_command")

    def fold(self, event: EventMessage) -> None:
        """Do nothing: no event changes a network that does not grow."""

    def settle(self, outcome: ly.CommandOutcome) -> None:
        """Do nothing: no outcome holds growth back where nothing grows."""

    def growth(self) -> ly.GrowthState | None:
        return None

    def prepare_return(self, saved: Saved, *, epoch: int, to_epoch: int) -> list[EventMessage]:
        return []

    def rewind(self, saved: Saved) -> None:
        self.restore(saved)

    def go_on(self, *, to_epoch: int) -> None:
        """Do nothing: there are no seeds."""

    def checkpoint(self) -> Saved:
        return Saved()

    def restore(self, saved: Saved) -> None:
        """Do nothing: there are no seeds."""
