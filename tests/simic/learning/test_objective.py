"""The objectives: their gradients, their clips, and what is PPO where nothing is off-policy."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from esper.simic.learning._objective import (
    advantage_weighted,
    decoupled_ppo,
    explained_variance,
    value_loss,
)

COUNT, CLIP = 64, 0.2


def normal(seed: int, scale: float = 1.0) -> Tensor:
    """Return drawn figures in float64."""
    return scale * torch.randn(COUNT, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(log_pi: Tensor, loss: Tensor) -> Tensor:
    """Return the gradient of a loss with respect to the log probabilities."""
    return torch.autograd.grad(loss, log_pi)[0]


def test_at_the_proximal_policy_the_gradient_is_the_policy_gradient() -> None:
    """There every ratio is exactly 1.0, nothing is clipped, and d loss / d log pi = -advantage / n."""
    log_pi, advantages = normal(0).requires_grad_(), normal(1)
    found = decoupled_ppo(log_pi, log_pi, log_pi, advantages, clip=CLIP)
    assert float(found.clip_share) == 0.0
    assert float(found.kl_proximal) == 0.0
    assert float(found.effective_share) == 1.0
    assert torch.equal(found.loss.detach(), -advantages.mean())
    torch.testing.assert_close(gradient(log_pi, found.loss), -advantages / COUNT)


def test_outside_the_clip_range_there_is_no_gradient() -> None:
    """Where a step has gone far enough in the direction of its advantage it learns nothing more; back it may come."""
    proximal = torch.zeros(4, dtype=torch.float64)
    log_pi = torch.tensor([0.5, -0.5, 0.5, -0.5], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    found = decoupled_ppo(log_pi, proximal, proximal, advantages, clip=CLIP)
    slopes = gradient(log_pi, found.loss)
    assert slopes[:2].tolist() == [0.0, 0.0]
    torch.testing.assert_close(slopes[2:], -advantages[2:] * log_pi.detach()[2:].exp() / 4)
    assert float(found.clip_share) == 1.0


def test_the_behaviour_policy_weighs_and_does_not_clip() -> None:
    """The loss written out, with stale and with fresh logs; a cap on the weight, and no gradient through it."""
    log_pi, proximal, behaviour, advantages = normal(2, 0.1).requires_grad_(), normal(3, 0.1), normal(4, 1.0), normal(5)
    found = decoupled_ppo(log_pi, proximal, behaviour, advantages, clip=CLIP, weight_max=1.5)
    total, mine = 0.0, log_pi.detach()
    for step in range(COUNT):
        ratio = math.exp(float(mine[step] - proximal[step]))
        weight = min(1.5, math.exp(float(proximal[step] - behaviour[step])))
        advantage = float(advantages[step])
        total += weight * min(ratio * advantage, min(max(ratio, 1 - CLIP), 1 + CLIP) * advantage)
    assert found.loss.item() == pytest.approx(-total / COUNT, rel=1e-9)
    assert 0.0 < float(found.effective_share) < 1.0


def test_it_is_ppo_where_nothing_is_off_policy() -> None:
    """With the behaviour policy as the proximal one it equals the plain clipped loss bit for bit."""
    log_pi, behaviour, advantages = normal(6, 0.3).requires_grad_(), normal(7, 0.3), normal(8)
    ratio = (log_pi - behaviour).exp()
    plain = -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages).mean()
    found = decoupled_ppo(log_pi, behaviour, behaviour, advantages, clip=CLIP)
    assert torch.equal(found.loss, plain)
    assert torch.equal(gradient(log_pi, found.loss), gradient(log_pi, plain))


def test_a_better_action_becomes_more_likely() -> None:
    """A step down either loss raises what was better than expected, more than what was worse: the sign is right."""
    for name in ("ppo", "awr"):
        log_pi = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        advantages = torch.tensor([1.0, -1.0], dtype=torch.float64)
        if name == "ppo":
            loss = decoupled_ppo(log_pi, log_pi, log_pi, advantages, clip=CLIP).loss
        else:
            loss = advantage_weighted(log_pi, advantages, temperature=1.0)
        better, worse = (-gradient(log_pi, loss)).tolist()
        assert better > worse, name
        assert better > 0, name


def test_weights_of_regression_are_bounded() -> None:
    """An advantage that no exponential holds weighs as much as the bound, and gives no infinite loss."""
    log_pi = torch.tensor([-1.0, -1.0], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1e6, math.log(3.0)], dtype=torch.float64)
    loss = advantage_weighted(log_pi, advantages, temperature=1.0, weight_max=20.0)
    assert loss.item() == pytest.approx((20.0 + 3.0) / 2)


def test_the_critic_is_measured_against_its_targets() -> None:
    """Half the squared error; all of the variance explained, none of it, and the question that has no answer."""
    targets = normal(9)
    assert float(value_loss(targets + 2.0, targets)) == pytest.approx(2.0)
    assert explained_variance(targets, targets) == 1.0
    assert explained_variance(targets + 5.0, targets) == pytest.approx(1.0)
    assert explained_variance(torch.zeros(COUNT), targets) == pytest.approx(0.0)
    assert math.isnan(explained_variance(targets, torch.ones(COUNT)))
