"""What a loop under `grow` does when its log is away: train on and say so later, or stop after a while."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import esper as package
from esper.core.clock import SYSTEM_CLOCK
from esper.core.errors import BrokerUnavailable
from esper.core.settings import Settings
from tests.integration.driver import Esper, eventually

FEATURES, CLASSES, STEPS = 8, 2, 5
RETRY_SECONDS = 3.0


class Loop:
    """A model and the steps that train it; the batches are numbered over the whole run."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        self.model = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.steps = 0

    def batch(self) -> tuple[Tensor, Tensor]:
        """Train on the next batch and return it."""
        generator = torch.Generator().manual_seed(self.steps)
        inputs = torch.randn(16, FEATURES, generator=generator)
        targets = (inputs[:, 0] * inputs[:, 1] > 0).long()
        self.optimizer.zero_grad()
        functional.cross_entropy(self.model(inputs), targets).backward()
        self.optimizer.step()
        self.steps += 1
        return inputs, targets


def test_training_goes_on_while_the_log_is_away(esper: Esper) -> None:
    """Goal: degrade loses no step and no epoch's record. Method: the real broker down and up again in mid-run."""
    settings = Settings(home=esper.home, broker_retry_seconds=RETRY_SECONDS, decision_wait_seconds=5.0)
    loop = Loop()
    outcomes = []
    with package.grow(loop.model, policy="noop", on_log_loss="degrade", settings=settings) as run:

        def epoch() -> str:
            for _ in range(STEPS):
                run.step(loop.batch())
            outcomes.append(run.end_epoch({"loss": 0.5, "val_loss": 0.5}))
            return outcomes[-1].reason

        assert [epoch(), epoch()] == ["", ""]
        assert esper("down").code == 0
        assert [epoch(), epoch(), epoch()] == ["log_gap"] * 3
        assert esper("up", timeout=120).code == 0
        eventually(lambda: epoch() != "log_gap", what="the log is heard again")
    gap = [outcome.epoch for outcome in outcomes if outcome.reason == "log_gap"]
    assert gap == list(range(3, 3 + len(gap)))
    runs = list(esper.events("runs", run_id=run.run_id))
    recorded = [event["payload"] for event in runs if event["type"].endswith("CommandOutcome")]
    assert sorted({outcome["epoch"] for outcome in recorded}) == list(range(1, run.epoch + 1))
    assert {outcome["epoch"] for outcome in recorded if outcome.get("reason") == "log_gap"} == set(gap)
    (told,) = [e["payload"] for e in esper.events("emergency") if e["payload"]["reason"] == "log_gap"]
    assert told["run_id"] == run.run_id
    attributes = told["attributes"]
    assert (attributes["first_epoch"], attributes["last_epoch"]) == (str(gap[0]), str(gap[-1]))
    assert runs[-1]["type"].endswith("TrainingRunFinished")
    alone = Loop()
    for _ in range(loop.steps):
        alone.batch()
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(tensor, loop.model.state_dict()[name]), name
    assert esper("verify", timeout=120).code == 0, "the chains of the producers hold"


def test_a_held_loop_stops_after_its_time(esper: Esper) -> None:
    """Goal: hold:SECONDS waits that long and then stops. Method: the broker down for good."""
    loop = Loop()

    def train_until_the_log_is_lost() -> None:
        with package.grow(loop.model, policy="noop", on_log_loss="hold:4", settings=Settings(home=esper.home)) as run:
            run.step(loop.batch())
            run.end_epoch({"loss": 0.5, "val_loss": 0.5})
            assert esper("down").code == 0
            run.step(loop.batch())
            began.append(SYSTEM_CLOCK.monotonic())
            run.end_epoch({"loss": 0.5, "val_loss": 0.5})

    began: list[float] = []
    with pytest.raises(BrokerUnavailable):
        train_until_the_log_is_lost()
    held = SYSTEM_CLOCK.monotonic() - began[0]
    assert 3.0 <= held < 60.0, "the settings' own time is 60 s"
