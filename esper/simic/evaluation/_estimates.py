"""Off-policy estimates of what an episode returns under another policy than the one that collected it.

R: episodes, one a row; T: steps, padded on the right. The behaviour policy is logged exactly, so no ratio is a guess.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Episodes:
    """Logged episodes and what the policy that is judged says of them; all [R, T], float64 but for `held`.

    Raises:
        ValueError: the shapes differ, or an episode has no step.
    """

    #: log pi(a|s) - log mu(a|s) of the actions taken; minus infinity where pi never takes them.
    log_ratios: Tensor
    rewards: Tensor
    #: Of the step's own next state; see `esper.simic.learning.Experience`.
    discounts: Tensor
    #: bool: whether a step is there; the first of every row is.
    held: Tensor

    def __post_init__(self) -> None:
        figures = (self.log_ratios, self.rewards, self.discounts, self.held)
        if self.held.dim() != 2 or {each.shape for each in figures} != {self.held.shape}:
            raise ValueError(f"episodes are [rows, steps] alike, not {[tuple(each.shape) for each in figures]}")
        if not len(self.held) or not bool(self.held[:, 0].all()):
            raise ValueError("an episode has a step at least")

    @property
    def weights(self) -> Tensor:
        """Products of the ratios up to each step, [R, T]; after an episode's end the last one stays."""
        return torch.where(self.held, self.log_ratios, 0.0).double().cumsum(dim=1).exp()

    @property
    def gains(self) -> Tensor:
        """Rewards, discounted to the episode's beginning, [R, T]; 0.0 in the padding."""
        ones = torch.ones_like(self.discounts[:, :1])
        before = torch.cat([ones, torch.where(self.held, self.discounts, 1.0)[:, :-1]], dim=1).cumprod(dim=1)
        return torch.where(self.held, self.rewards * before, 0.0).double()


def effective_episodes(episodes: Episodes) -> float:
    """Return the effective sample size of the whole episodes' weights, (sum w)^2 / sum w^2 (Kong, 1992)."""
    last = episodes.weights[:, -1]
    squares = float(last.square().sum())
    return float(last.sum()) ** 2 / squares if squares > 0.0 else 0.0


def logged(episodes: Episodes) -> Tensor:
    """Return what each episode returned, [R]: the estimate of the policy that collected them."""
    return episodes.gains.sum(dim=1)


def per_decision(episodes: Episodes) -> Tensor:
    """Return one unbiased estimate an episode, [R]: rewards weighed by the ratios up to them (Precup et al., 2000)."""
    return (episodes.weights * episodes.gains).sum(dim=1)


def doubly_robust(episodes: Episodes, values: Tensor, next_values: Tensor) -> Tensor:
    """Return one estimate an episode, [R], with a critic as control variate (Jiang and Li, 2016, arXiv 1511.03722).

    The action value is taken to be the state's value, as actions of several heads have no table: unbiased all the
    same where the critic did not see these episodes, and the better, the better the critic.

    Args:
        episodes: What was logged.
        values: Of the states acted in, under the policy that is judged, [R, T].
        next_values: Of the states reached; what an episode that was cut off would have gone on to.
    """
    ratios = torch.where(episodes.held, episodes.log_ratios, 0.0).double().exp()
    estimate = torch.zeros(len(ratios), dtype=torch.float64)
    steps = ratios.shape[1]
    for step in range(steps - 1, -1, -1):
        held = episodes.held[:, step]
        goes_on = episodes.held[:, step + 1] if step + 1 < steps else torch.zeros_like(held)
        later = torch.where(goes_on, estimate, next_values[:, step].double())
        error = episodes.rewards[:, step] + episodes.discounts[:, step] * later - values[:, step]
        estimate = torch.where(held, values[:, step] + ratios[:, step] * error, 0.0)
    return estimate


@dataclass(frozen=True)
class Weighted:
    """Self-normalised per-decision importance sampling: what is summed over episodes before it is divided; [R, T]."""

    weighted_gains: Tensor
    weights: Tensor

    @classmethod
    def of(cls, episodes: Episodes) -> Weighted:
        """Return the sums' parts; an episode that ended goes on with its last weight and no reward."""
        weights = episodes.weights
        return cls(weights * episodes.gains, weights)

    def estimate(self, counts_BR: Tensor) -> Tensor:
        """Return the estimates, [B], of samples that hold episode r `counts_BR[:, r]` times; biased and consistent."""
        weights = counts_BR @ self.weights
        return torch.where(weights > 0.0, counts_BR @ self.weighted_gains / weights.clamp(min=1e-300), 0.0).sum(dim=1)
