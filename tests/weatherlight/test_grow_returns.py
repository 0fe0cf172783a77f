"""Orders to a loop of one's own about its optimiser: they compose with its schedule, and a return takes them back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from esper.core.errors import UsageError
from esper.leyline import messages as ly
from esper.tolaria import EpochEdge, MemoryJournal, StaticController, TrainingDiverged
from esper.weatherlight._grow._returns import LoopOrders
from esper.weatherlight._grow._wishes import LogLoss, Wishes, returns_on

Schedule = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
SCHEDULES: dict[str, Schedule] = {
    "lambda": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step),
    "exponential": lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40),
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=40),
}


def loop(
    schedule: Schedule | None,
    orders: dict[int, ly.AdaptationCommand],
    losses: dict[int, float],
    *,
    returns: bool = True,
) -> Iterator[tuple[int, float, ly.CommandOutcome]]:
    """Train six epochs of a tiny network; give epoch, learning rate after its edge, and outcome."""
    torch.manual_seed(1)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    scheduler = schedule(optimizer) if schedule is not None else None
    wishes = Wishes("auto", optimizer, None, None, None, scheduler, "noop", 0, 0, "", LogLoss(), returns=returns)
    controller = StaticController()
    run = LoopOrders(model, controller, wishes, run_id="loop", every_epochs=1)
    journal = MemoryJournal(policy=lambda packet: orders.get(packet.current_epoch))
    edge = EpochEdge(run_id="loop", attempt=1, controller=controller, journal=journal, orders=run.orders)
    for epoch in range(1, 7):
        optimizer.zero_grad()
        model(torch.ones(4, 3)).pow(2).mean().backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        loss = losses.get(epoch, 1.0)
        packet = ly.SystemStatePacket(training_run_id="loop", current_epoch=epoch, validation_loss=loss)
        with run.edge(packet, edge.seed_events):
            outcome = edge.close(packet)
        yield epoch, optimizer.param_groups[0]["lr"], outcome


def factor(value: float) -> ly.AdaptationCommand:
    wish = ly.CommandOptimizerAdjustment(optimizer_id="sgd", hyperparameters={"learning_rate_factor": value})
    return ly.AdaptationCommand(command_type=ly.COMMAND_OPTIMIZER, optimizer_adjustment=wish)


@pytest.mark.parametrize("schedule", [None, *SCHEDULES])
def test_a_factor_composes_with_the_schedule_and_is_taken_back(schedule: str | None) -> None:
    """Goal: the schedule goes on, times the factor. Method: a factor at epoch 2, a return at 4 to before it (NaN at 4;
    nothing is kept of 2 and 3 but epochs 1 to 3 are), each rate against the loop without orders."""
    made = None if schedule is None else SCHEDULES[schedule]
    plain = [rate for _, rate, _ in loop(made, {}, {})]
    slow = [rate for _, rate, _ in loop(made, {2: factor(0.25)}, {})]
    assert slow == pytest.approx([rate * (0.25 if epoch >= 2 else 1.0) for epoch, rate in enumerate(plain, 1)])
    back = ly.AdaptationCommand(command_type=ly.COMMAND_ROLLBACK)
    back.rollback_payload.update({"to_epoch": 2})
    undone = list(loop(made, {3: factor(0.25), 4: back}, {}))
    assert [outcome.rolled_back.to_epoch for _, _, outcome in undone] == [0, 0, 0, 2, 0, 0], undone[3][2].reason
    expected = [rate * (0.25 if epoch == 3 else 1.0) for epoch, rate in enumerate(plain, 1)]
    assert [rate for _, rate, _ in undone] == pytest.approx(expected)


def test_faults_are_recorded_unless_the_loop_asks_for_more() -> None:
    """Goal: a plain loop is never touched. Method: NaN with and without `on_fault="rollback"`."""
    nan = {4: float("nan")}
    assert not any(outcome.HasField("rolled_back") for *_, outcome in loop(None, {}, nan, returns=False))
    assert [outcome.rolled_back.to_epoch for *_, outcome in loop(None, {}, nan)] == [0, 0, 0, 3, 0, 0]
    with pytest.raises(TrainingDiverged, match="in epoch 1"):
        list(loop(None, {}, {1: float("nan")}))
    with pytest.raises(UsageError, match="on_fault='panic' cannot be used"):
        returns_on("panic", None)
