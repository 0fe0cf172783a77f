"""Forwards beside a training: streams of their own, flags and tensors that come back, whatever happens inside."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from esper.core.apart import forked_rng, in_backward, in_eval_mode, measured, stood_in

DRAWS: dict[str, Callable[[], float]] = {
    "torch": lambda: float(torch.rand(())),
    "Python": random.random,
    "numpy": np.random.rand,
}


def start() -> None:
    """Start the global streams anew."""
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)


def _draw_and_fail(draw: Callable[[], float]) -> None:
    draw()
    raise ZeroDivisionError


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("seed", [None, 5, (1 << 63) - 1])
def test_a_fork_leaves_the_outer_stream_where_it_was(name: str, seed: int | None) -> None:
    """Goal: no draw inside is felt outside, also where a fork is in a fork and where it fails."""
    draw = DRAWS[name]
    start()
    expected = [draw() for _ in range(3)]
    start()
    with forked_rng(seed=seed):
        inside = draw()
        with forked_rng(seed=seed):
            innermost = draw()
        after = draw()
    with pytest.raises(ZeroDivisionError), forked_rng(seed=seed):
        _draw_and_fail(draw)
    assert [draw() for _ in range(3)] == expected
    assert after != inside
    assert inside == (expected[0] if seed is None else innermost)
    with forked_rng(seed=seed):
        again = draw()
    assert (again == inside) is (seed is not None)


def test_modes_are_flags() -> None:
    """Goal: a module that does more in `train()` is not asked to; frozen parts stay frozen."""
    asked: list[bool] = []

    class Asked(nn.Linear):
        def train(self, mode: bool = True) -> Asked:
            asked.append(mode)
            return super().train(mode)

    model = nn.Sequential(Asked(2, 2), nn.BatchNorm1d(2))
    model[1].eval()
    asked.clear()
    with in_eval_mode(model):
        assert [module.training for module in model.modules()] == [False] * 3
    assert [module.training for module in model.modules()] == [True, True, False]
    assert asked == []


def test_tensors_come_back_the_very_same() -> None:
    """Goal: what is tied stays tied. Method: a tied layer and a buffer; leave by the end, and by an error."""
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    model = nn.Sequential(first, nn.BatchNorm1d(2), second)
    before = dict(model.state_dict(keep_vars=True))
    with stood_in(model, parameter=Tensor.detach, buffer=torch.clone):
        inside = dict(model.state_dict(keep_vars=True))
        assert inside["0.weight"] is inside["2.weight"]
        assert all(inside[name] is not tensor for name, tensor in before.items())
    with pytest.raises(ZeroDivisionError), stood_in(model, parameter=Tensor.detach, buffer=torch.clone):
        _draw_and_fail(random.random)
    assert all(model.state_dict(keep_vars=True)[name] is tensor for name, tensor in before.items())


def test_a_measurement_leaves_statistics_alone() -> None:
    """Goal: a buffer that is written in every mode has its content again, and its identity."""

    class Counting(nn.Module):
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count.add_(1.0)
            return x * self.count

    model = Counting()
    buffer = model.count
    with measured(model):
        assert float(model(torch.ones(()))) == 1.0
        assert float(model(torch.ones(()))) == 2.0
        assert not torch.is_grad_enabled()
    assert model.count is buffer
    assert float(buffer) == 0.0


def test_a_backward_is_known_from_inside() -> None:
    """Goal: a forward that runs again is told from a first one. Method: look in a hook of a gradient, and around it."""
    seen: list[bool] = []
    leaf = torch.ones((), requires_grad=True)
    leaf.register_hook(lambda _: seen.append(in_backward()))
    outcome = leaf * 2.0
    assert not in_backward()
    outcome.backward()
    assert seen == [True]
    assert not in_backward()
