"""What `grow` is given and cannot use is refused before anything is started, and says what would do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import esper
from esper.core.errors import UsageError
from esper.leyline import messages as ly
from esper.weatherlight._grow import _entry
from esper.weatherlight._grow._probe import held_out
from tests.weatherlight.loops import OwnLoop, grower, perceptron, samples


def refusal(monkeypatch: pytest.MonkeyPatch, **given: Any) -> str:
    """Return why `grow` refuses; a home, a broker or a member that it looks for fails the test."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr(_entry, "load_settings", never)
    monkeypatch.setattr(_entry, "ranks_of", never)
    with pytest.raises(UsageError) as refused, esper.grow(perceptron(), loss_fn=nn.CrossEntropyLoss(), **given):
        raise AssertionError("the block was entered")
    return str(refused.value)


INPUTS, TARGETS = samples(1)
UNUSABLE: list[tuple[Any, str]] = [
    (7, "it is of type int, which holds none"),
    ([], "it holds no batch"),
    (iter(()), "it holds no batch"),
    ((INPUTS, TARGETS), "its batch 0 is a Tensor, no pair of inputs and targets"),
    ([(INPUTS,)], "its batch 0 is a tuple of 1"),
    ([(INPUTS, TARGETS), {"x": INPUTS}], "its batch 1 is a dict"),
    ([(INPUTS, TARGETS), (INPUTS[:0], TARGETS[:0])], "its batch 1 holds no sample"),
    ([("text", TARGETS)], "the inputs of its batch 0 are a str"),
    ("text", "its batch 0 is a str"),
]


@pytest.mark.parametrize(("probe", "cause"), UNUSABLE, ids=[cause for _, cause in UNUSABLE])
def test_an_unusable_probe_is_refused_at_start(probe: object, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: no traceback after members were started. Method: probes of every wrong kind, and what is said of each."""
    said = refusal(monkeypatch, probe=probe)
    assert "the probe cannot be used" in said
    assert cause in said
    assert "probe=[(inputs, targets)]" in said


def test_a_data_loader_is_a_probe() -> None:
    """Goal: what people have at hand is taken. Method: a shuffling loader of 64 samples is gone through once, leaves
    the random stream alone, and a seed is measured on its batches."""
    data = TensorDataset(*samples(999, 64))
    before = torch.get_rng_state()
    batches = held_out(DataLoader(data, batch_size=32, shuffle=True))
    assert batches is not None
    assert [(len(inputs), len(targets)) for inputs, targets in batches] == [(32, 32), (32, 32)]
    assert torch.equal(torch.get_rng_state(), before)
    loop = OwnLoop(perceptron(), grower(), probe=batches)
    loop.epoch()
    loop.epoch()
    assert loop.stages == [ly.SEED_STAGE_TRAINING]
    assert held_out(None) is None
    several = DataLoader([((INPUTS[0], INPUTS[0]), TARGETS[0])])  # type: ignore[arg-type, var-annotated]  # a data set
    (pair,) = held_out(several) or []
    assert isinstance(pair[0], tuple), "several inputs are a tuple, as models are called with"


def test_an_optimizer_with_one_flat_state_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: no size mismatch when a seed stays. Method: LBFGS is refused by name; left out, as the refusal says, a
    loop that steps it fossilises a seed and trains on."""
    said = refusal(monkeypatch, optimizer=torch.optim.LBFGS(perceptron().parameters()))
    assert "optimizer=LBFGS cannot be used" in said
    assert "one flat state" in said
    assert "leave optimizer out" in said
    model = perceptron()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2)
    loop = OwnLoop(model, grower(), optimizer=None)
    for step in range(160):
        inputs, targets = samples(step)

        def closure(inputs: torch.Tensor = inputs, targets: torch.Tensor = targets) -> float:
            optimizer.zero_grad()
            loss = loop.loss(model(inputs), targets)
            loss.backward()
            return loss.item()

        optimizer.step(closure)
        loop.run.step((inputs, targets))
        loop.run.tick({"loss": 1.0}, every=10)
    assert loop.stages == [ly.SEED_STAGE_FOSSILIZED]


def test_a_return_needs_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: nobody trusts in returns that there are not. Method: ask for them without an optimiser."""
    said = refusal(monkeypatch, on_fault="rollback")
    assert "on_fault='rollback' cannot be used without an optimizer" in said
    assert "give grow(..., optimizer=...)" in said
