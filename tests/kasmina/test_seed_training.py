"""The seed's own optimiser: clipping, faults, and the move to the host's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from esper.kasmina import KasminaConfig
from esper.kasmina.bed._seed_training import SeedTrainer


def trainer(clip_norm: float = 1.0, size: int = 4) -> tuple[SeedTrainer, nn.Parameter]:
    """Return a trainer of one parameter vector at zero."""
    module = nn.ParameterList([nn.Parameter(torch.zeros(size))])
    config = KasminaConfig(clip_norm=clip_norm, warmup_steps=0)
    return SeedTrainer(module, sound=torch.ones((), dtype=torch.bool), config=config), module[0]


@pytest.mark.parametrize(("length", "clipped"), [(10.0, 1.0), (0.5, 0.5), (0.0, 0.0)])
def test_gradients_are_clipped_to_the_norm(length: float, clipped: float) -> None:
    """Goal: no step is larger than the clip allows. Method: AdamW's first moment after one step is a tenth of the
    gradient that it was given; the reported norm is that before clipping.
    """
    subject, parameter = trainer()
    parameter.grad = torch.full((4,), length / 2.0)
    subject.step()
    assert subject.optimizer is not None
    moment = subject.optimizer.state[parameter]["exp_avg"]
    assert float(moment.norm()) * 10.0 == pytest.approx(clipped, rel=1e-4)
    assert subject.gradient_norm == pytest.approx(length)
    assert parameter.grad is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_moves_nothing_and_is_remembered(value: float) -> None:
    """Goal: weights stay finite and the fault is not forgotten. Method: one bad gradient, then a good one."""
    sound = torch.ones((), dtype=torch.bool)
    parameter = nn.Parameter(torch.ones(2))
    subject = SeedTrainer(nn.ParameterList([parameter]), sound=sound, config=KasminaConfig(warmup_steps=0))
    parameter.grad = torch.tensor([value, 1.0])
    subject.step()
    assert torch.equal(parameter.detach(), torch.ones(2))
    assert not bool(sound)
    parameter.grad = torch.ones(2)
    subject.step()
    assert torch.isfinite(parameter).all()
    assert not torch.equal(parameter.detach(), torch.ones(2))
    assert not bool(sound)


def test_without_a_gradient_no_step_is_taken() -> None:
    """Goal: a seed that was not heard does not drift. Method: a step without gradients, and a loss without a graph."""
    subject, parameter = trainer()
    subject.step()
    subject.learn_from(torch.tensor(2.0))
    subject.close_epoch()
    assert subject.steps == 0
    assert subject.gradient_norm is None
    assert torch.equal(parameter.detach(), torch.zeros(4))
    assert subject.shadow.epoch_losses == (2.0,)
    subject.close_epoch()
    assert subject.shadow.epoch_losses == (2.0,), "an epoch without a shadow adds nothing"


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"fused": True}])
def test_moments_move_as_the_host_expects_them(options: dict[str, bool]) -> None:
    """Goal: the host's next step works on moved state. Method: hosts under Adam with options that want more of it."""
    subject, parameter = trainer()
    parameter.grad = torch.ones(4)
    subject.step()
    own = subject.optimizer
    assert own is not None
    moment = own.state[parameter]["exp_avg"]
    layer = nn.Linear(2, 2)
    host = torch.optim.Adam(layer.parameters(), lr=0.1, **options)  # type: ignore[arg-type]
    subject.hand_over(host, beside=list(layer.parameters()))
    assert host.state[parameter]["exp_avg"] is moment
    assert ("max_exp_avg_sq" in host.state[parameter]) == bool(options.get("amsgrad"))
    parameter.grad = torch.ones(4)
    before = parameter.detach().clone()
    host.step()
    assert not torch.equal(parameter.detach(), before)
    assert float(host.state[parameter]["step"]) == 2.0
    subject.hand_over(host, beside=[])
    assert sum(each is parameter for group in host.param_groups for each in group["params"]) == 1


def test_a_seed_without_parameters_trains_nothing() -> None:
    """Goal: a parameterless kernel is no error. Method: every call of a trainer over nothing."""
    subject = SeedTrainer(nn.ReLU(), sound=torch.ones((), dtype=torch.bool), config=KasminaConfig())
    subject.zero_grad()
    subject.step()
    assert subject.optimizer is None
    host = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    subject.hand_over(host, beside=[])
    assert len(host.param_groups[0]["params"]) == 2
