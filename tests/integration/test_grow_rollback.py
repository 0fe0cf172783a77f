"""A loop of one's own under `grow` is taken back after a fault: model, optimiser, loss scale and random streams."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional

import esper
from esper.core.settings import Settings
from esper.leyline import messages as ly
from esper.tolaria import TrainingDiverged
from tests.integration.driver import Esper
from tests.integration.test_grow_exact import batch, host

STEPS, SPOILT = 10, 3


def test_a_loop_is_taken_back_and_told_so(serving: Esper) -> None:
    """Goal: what a fault spoilt stands again byte for byte, in the caller's own objects. Method: NaN in a weight at the
    end of epoch 3; then at every epoch's end until no return is left."""
    model = host()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=7)
    settings = Settings(home=serving.home, checkpoint_every_epochs=1)
    before: dict[str, Any] = {}
    outcomes: list[ly.CommandOutcome] = []

    def state() -> dict[str, Any]:
        return copy.deepcopy(
            {
                "weights": {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()},
                "moments": {
                    name: {key: value.numpy().tobytes() for key, value in optimizer.state[parameter].items()}
                    for name, parameter in model.named_parameters()
                },
                "scaler": scaler.state_dict(),
                "rng": torch.get_rng_state().numpy().tobytes(),
            }
        )

    def train() -> None:
        nonlocal before
        with esper.grow(
            model,
            optimizer=optimizer,
            loss_fn=functional.cross_entropy,
            probe=[batch(-1, 64)],
            scaler=scaler,
            scheduler=scheduler,
            policy="noop",
            settings=settings,
            on_fault="rollback",
        ) as run:
            for epoch in range(1, 9):
                model.train()
                for step in range(STEPS):
                    inputs, targets = batch(epoch * STEPS + step)
                    optimizer.zero_grad()
                    loss = functional.cross_entropy(model(inputs), targets)
                    scaler.scale(loss).backward()
                    scaler.step(optimizer)
                    scaler.update()
                    scheduler.step()
                    run.step((inputs, targets))
                if epoch < SPOILT:
                    before = state()
                else:
                    with torch.no_grad():
                        model[2].weight[0, 0] = float("nan")
                outcomes.append(run.end_epoch({"loss": float(loss.detach())}))
                if epoch >= SPOILT:
                    assert state() == before

    with pytest.raises(TrainingDiverged, match="after 3 returns"):
        train()
    returns = [outcome.rolled_back for outcome in outcomes if outcome.HasField("rolled_back")]
    assert [(one.from_epoch, one.to_epoch, one.rate_factor) for one in returns] == [
        (3, 2, 0.5),
        (4, 2, 0.25),
        (5, 2, 0.125),
    ]
    assert {one.reason for one in returns} == {"fault:loss_not_finite"}
    rate = 3e-3 / (1 + 6 * STEPS)
    assert scheduler.get_last_lr()[0] == pytest.approx(0.125 * rate)
    told = [one for one in serving.events("runs", run_id=outcomes[0].run_id) if one["type"].endswith("RunRolledBack")]
    assert [one["payload"]["to_epoch"] for one in told] == [2, 2, 2]
    packets = [one["payload"] for one in serving.events("system-state", run_id=outcomes[0].run_id)]
    follows = {packet["current_epoch"]: packet["follows_epoch"] for packet in packets if packet.get("follows_epoch")}
    assert {4: 2, 5: 2}.items() <= follows.items()
    assert set(follows.values()) == {2}
