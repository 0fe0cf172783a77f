"""A share of the learning rate lasts under every scheduler that torch ships."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as of
from torch.optim.swa_utils import SWALR

from esper.leyline import messages as ly
from esper.tolaria import EpochEdge, MemoryJournal, StaticController
from esper.weatherlight._grow._returns import LoopOrders
from esper.weatherlight._grow._wishes import LogLoss, Wishes

STEPS = 20
Schedule = Callable[[torch.optim.Optimizer], Any]

SCHEDULES: dict[str, Schedule] = {
    "LambdaLR": lambda o: of.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: of.MultiplicativeLR(o, lambda _: 0.9),
    "StepLR": lambda o: of.StepLR(o, 7, 0.3),
    "MultiStepLR": lambda o: of.MultiStepLR(o, [3, 12], 0.3),
    "ConstantLR": lambda o: of.ConstantLR(o, 0.1, 12),
    "LinearLR": lambda o: of.LinearLR(o, 0.1, 1.0, 15),
    "ExponentialLR": lambda o: of.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: of.PolynomialLR(o, 25, 2.0),
    "CosineAnnealingLR": lambda o: of.CosineAnnealingLR(o, 8, eta_min=0.01),
    "CosineAnnealingWarmRestarts": lambda o: of.CosineAnnealingWarmRestarts(o, 6, eta_min=0.01),
    "CyclicLR": lambda o: of.CyclicLR(o, 0.01, 0.2, step_size_up=5),
    "OneCycleLR": lambda o: of.OneCycleLR(o, 0.2, total_steps=60),
    "ReduceLROnPlateau": lambda o: of.ReduceLROnPlateau(o, factor=0.3, patience=2, min_lr=0.02, eps=1e-3),
    "SequentialLR": lambda o: of.SequentialLR(
        o, [of.LambdaLR(o, lambda step: (step + 1) / 10), of.LambdaLR(o, lambda step: 0.9**step)], [9]
    ),
    "SequentialLR of other kinds": lambda o: of.SequentialLR(
        o, [of.LinearLR(o, 0.1, 1.0, 5), of.CosineAnnealingLR(o, 15, eta_min=0.01), of.ConstantLR(o, 0.5)], [9, 20]
    ),
    "ChainedScheduler": lambda o: of.ChainedScheduler([of.LambdaLR(o, lambda step: 0.95**step)]),
    "ChainedScheduler of two": lambda o: of.ChainedScheduler([of.ConstantLR(o, 0.1, 8), of.ExponentialLR(o, 0.9)]),
    "SWALR": lambda o: SWALR(o, swa_lr=0.02, anneal_epochs=12),
}


class Cyclical(of.LRScheduler):
    """A user's own, with figures of its own."""

    peak = 0.3

    def get_lr(self) -> list[float | torch.Tensor]:
        return [self.peak / (1 + self.last_epoch % 3) for _ in self.optimizer.param_groups]


def rates(schedule: Schedule, *, at: int = 0, by: str = "order") -> list[list[float]]:
    """Return the rates of both groups after each of 20 steps, from the edge of epoch `at` on half of them.

    Where a fault asks for it the run returns to the epoch before, and goes on at half the rate.
    """
    model = nn.Linear(3, 2)
    groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.05}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.5)
    scheduler = schedule(optimizer)
    wishes = Wishes("auto", optimizer, None, None, None, scheduler, "noop", 0, 0, "", LogLoss(), returns=True)
    controller = StaticController()
    run = LoopOrders(model, controller, wishes, run_id="loop", every_epochs=1)
    wish = ly.CommandOptimizerAdjustment(optimizer_id="sgd", hyperparameters={"learning_rate_factor": 0.5})
    half = ly.AdaptationCommand(command_type=ly.COMMAND_OPTIMIZER, optimizer_adjustment=wish)
    orders = {at: half} if by == "order" else {}
    journal = MemoryJournal(policy=lambda packet: orders.get(packet.current_epoch))
    edge = EpochEdge(run_id="loop", attempt=1, controller=controller, journal=journal, orders=run.orders)
    found = []
    for epoch in range(1, STEPS + 1):
        optimizer.zero_grad()
        model(torch.ones(4, 3)).pow(2).mean().backward()
        optimizer.step()
        scheduler.step(*([1.0] if isinstance(scheduler, of.ReduceLROnPlateau) else []))
        loss = float("nan") if by == "fault" and epoch == at else 1.0
        packet = ly.SystemStatePacket(training_run_id="loop", current_epoch=epoch, validation_loss=loss)
        with run.edge(packet, edge.seed_events):
            edge.close(packet)
        found.append([float(group["lr"]) for group in optimizer.param_groups])
        if epoch >= at > 0:
            assert [float(rate) for rate in scheduler.get_last_lr()] == pytest.approx(found[-1])
    return found


@pytest.mark.parametrize("by", ["order", "fault"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_all_later_rates_are_half_of_what_they_would_be(
    name: str, by: str, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    """Goal: a halved rate stays halved. Method: each scheduler of torch over 20 steps, halved early, in the middle and
    late, against the same loop without; both groups, which differ in their rates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of torch, about its own schedulers in a sequence.
        plain = rates(SCHEDULES[name])
        for at in (2, 8, 13):
            expected = [
                [rate * (0.5 if epoch >= at else 1.0) for rate in each] for epoch, each in enumerate(plain, start=1)
            ]
            found = rates(SCHEDULES[name], at=at, by=by)
            assert [rate for each in found for rate in each] == pytest.approx([r for each in expected for r in each])
    assert "may not keep to it" not in caplog.text


def test_every_scheduler_of_torch_is_among_them() -> None:
    """Goal: the list above is whole. Method: the names that torch exports, but for the base of all."""
    shipped = set(of.__all__) - {"LRScheduler"} | {"SWALR"}
    assert {name.partition(" ")[0] for name in SCHEDULES} == shipped


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a chain"])
def test_a_scheduler_of_another_kind_is_named(inside: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Goal: what may be lost is said. Method: a scheduler with figures of its own, alone and within one of torch's."""

    def schedule(optimizer: torch.optim.Optimizer) -> of.LRScheduler:
        own = Cyclical(optimizer)
        return of.ChainedScheduler([own]) if inside else own

    rates(schedule)
    assert "may not keep to it" not in caplog.text
    rates(schedule, at=5, by="fault")
    assert "a Cyclical may not keep to it" in caplog.text
