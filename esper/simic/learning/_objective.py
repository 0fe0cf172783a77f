"""What is minimised: decoupled PPO, which is PPO where nothing is off-policy, and advantage-weighted regression."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Surrogate:
    """A policy loss, 0-d and to be minimised, with what tells whether the step was sound; figures are detached."""

    loss: Tensor
    #: Share of steps whose ratio to the proximal policy lay outside the clip range.
    clip_share: Tensor
    #: KL(proximal || pi) over the steps taken, by the k3 estimator (http://joschu.net/blog/kl-approx.html), nats.
    kl_proximal: Tensor
    #: Effective sample size of the importance weights over the number of steps, in 0..1.
    effective_share: Tensor


def decoupled_ppo(
    log_pi_B: Tensor,
    log_proximal_B: Tensor,
    log_behaviour_B: Tensor,
    advantages_B: Tensor,
    *,
    clip: float,
    weight_max: float = 1.0,
) -> Surrogate:
    """Return the clipped surrogate of Hilton, Cobbe and Schulman (2021, arXiv 2110.00641).

    The behaviour policy serves the importance weight, capped at `weight_max`, a recent proximal policy the clip.
    Where the proximal policy is the behaviour policy every weight is 1.0, and this is the loss of PPO (Schulman et
    al., 2017, arXiv 1707.06347) bit for bit. Gradients flow through `log_pi_B` alone.

    Args:
        log_pi_B: Log probabilities of the actions taken under the policy that learns, [steps].
        log_proximal_B: Under the policy at the beginning of the update.
        log_behaviour_B: Under the policy that took them, as it was logged.
        advantages_B: Of the actions taken.
        clip: Half the width of the range in which the ratio to the proximal policy counts.
        weight_max: Cap of the importance weight.
    """
    log_proximal_B, log_behaviour_B = log_proximal_B.detach(), log_behaviour_B.detach()
    difference = log_pi_B - log_proximal_B
    ratio = difference.exp()
    weight = (log_proximal_B - log_behaviour_B).exp().clamp(max=weight_max)
    clipped = ratio.clamp(1.0 - clip, 1.0 + clip)
    gain = torch.minimum(ratio * advantages_B, clipped * advantages_B)
    with torch.no_grad():
        outside = ((ratio - 1.0).abs() > clip).to(gain.dtype).mean()
        kl = (ratio - 1.0 - difference).mean()
        effective = weight.sum().square() / (weight.square().sum() * len(weight))
    return Surrogate(-(weight * gain).mean(), outside, kl, effective)


def advantage_weighted(
    log_pi_B: Tensor, advantages_B: Tensor, *, temperature: float, weight_max: float = 20.0
) -> Tensor:
    """Return the loss of advantage-weighted regression (Peng et al., 2019, arXiv 1910.00177), 0-d.

    The logged actions are imitated, each with weight exp(advantage / temperature), at most `weight_max`: one step of
    improvement that never leaves what the log supports.
    """
    weights = (advantages_B.detach() / temperature).exp().clamp(max=weight_max)
    return -(weights * log_pi_B).mean()


def value_loss(values_B: Tensor, targets_B: Tensor) -> Tensor:
    """Return half the mean squared error of the critic, 0-d; not clipped, as clipping it only slows the critic."""
    return 0.5 * (values_B - targets_B.detach()).square().mean()


def explained_variance(values_B: Tensor, targets_B: Tensor) -> float:
    """Return the share of the targets' variance that the critic explains: 1.0 all, 0.0 no more than their mean.

    NaN where the targets do not vary.
    """
    variance = float(targets_B.var(correction=0))
    return 1.0 - float((targets_B - values_B).var(correction=0)) / variance if variance > 0.0 else float("nan")
