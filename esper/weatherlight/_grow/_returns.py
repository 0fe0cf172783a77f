"""Where a loop of the user's own meets orders about its run: its optimiser, and the return to an earlier state.

The loop's model, optimiser, loss scale and random streams come back bit for bit. Its schedule does not: as in Esper's
own trainer the learning rate belongs to the epochs that pass, and only the share of it that orders and faults left is
taken back. What order the loop's data come in is the loop's business.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from esper.core.errors import UsageError
from esper.core.ports import GraftController
from esper.leyline import messages as ly
from esper.tolaria import Checkpoint, Position, ReturnLimits, ReturnPoints, RunOrders, RunState, capture_run
from esper.tolaria import rate_factor as factor_of
from esper.weatherlight._grow._rates import rates_of, scale_schedule, scaled
from esper.weatherlight._grow._side import Side
from esper.weatherlight._grow._telling import TellingEdge
from esper.weatherlight._grow._wishes import Wishes

_log = logging.getLogger("esper.grow")


class LoopOrders:
    """Keeps what a loop can return to, in memory, and lets orders act on its optimiser and schedule."""

    def __init__(
        self, model: nn.Module, controller: GraftController, wishes: Wishes, *, run_id: str, every_epochs: int
    ) -> None:
        self._wishes = wishes
        self._every_epochs = every_epochs if wishes.returns else 0
        self._points = ReturnPoints()
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self._state = RunState(model, wishes.optimizer, device, controller, loop=_ScaleOf(wishes))
        self.orders = RunOrders(run_id, 1, self._state, self._points, ReturnLimits() if wishes.returns else None)

    @contextmanager
    def edge(self, packet: ly.SystemStatePacket, seed_events: int) -> Iterator[None]:
        """Look at the epoch, keep its state if it is time and nothing is wrong, and pass its edge in the block.

        Raises:
            TrainingDiverged: something is wrong and there is nothing left to return to.
        """
        checkpoint = None if self.orders.see(packet) else self._taken(packet, seed_events)
        optimizer = self._wishes.optimizer
        if optimizer is None:
            yield
            return
        before, rates = factor_of(optimizer), [rates_of(group) for group in optimizer.param_groups]
        yield
        ratio = factor_of(optimizer) / before
        for group, kept in zip(optimizer.param_groups, rates, strict=True):
            group.update({name: value if ratio == 1.0 else scaled(value, ratio) for name, value in kept.items()})
        if ratio != 1.0:
            self._scale_schedule(ratio)
        if checkpoint is not None:
            self._points.keep(checkpoint)

    def _scale_schedule(self, ratio: float) -> None:
        for name in scale_schedule(self._wishes.scheduler, ratio):
            _log.warning(
                "the learning rate is %g times what it was, and a %s may not keep to it: it is no scheduler of torch's "
                "own, and may compute rates from figures that are not known here; look at the rates that follow",
                ratio, name,
            )  # fmt: skip

    def _taken(self, packet: ly.SystemStatePacket, seed_events: int) -> Checkpoint | None:
        epoch = packet.current_epoch
        if self._every_epochs == 0 or epoch % self._every_epochs != 0:
            return None
        try:
            content = capture_run(self._state, Position(epoch, seed_events, self.orders.faults))
        except (UsageError, TypeError) as error:  # JSON takes no tensors, which some optimisers keep as options.
            _log.warning("nothing to return to is kept of epoch %d: %s", epoch, error)
            return None
        return Checkpoint(epoch, content, packet.weights_digest)


def edge_of(
    model: nn.Module, controller: GraftController, wishes: Wishes, side: Side, *, run_id: str
) -> tuple[LoopOrders, TellingEdge]:
    """Return what a loop's epochs pass: the orders on its run, and the edge that asks them."""
    every = side.settings.checkpoint_every_epochs
    made = LoopOrders(model, controller, wishes, run_id=run_id, every_epochs=every)
    journal = side.journal()
    return made, TellingEdge(run_id=run_id, attempt=1, controller=controller, journal=journal, orders=made.orders)


class _ScaleOf:
    """The loop's loss scale, as far as its scaler says it."""

    def __init__(self, wishes: Wishes) -> None:
        self._scaler: Any = wishes.scaler

    def state_dict(self) -> dict[str, Any]:
        """Return the scaler's own state; nothing where there is none."""
        return dict(self._scaler.state_dict()) if hasattr(self._scaler, "state_dict") else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give the scaler its state back."""
        if state:
            self._scaler.load_state_dict(state)
