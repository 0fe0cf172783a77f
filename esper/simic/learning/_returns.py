"""Advantages and value targets: generalised advantage estimation, and V-trace for what another policy collected.

Rows hold steps in order, padded on the right; one row may hold several episodes one after the other. `follows` says
where the next step of the row goes on with the same episode: not at an episode's last step, not in the padding.

A step may last several epochs, so every step has a discount of its own: gamma to the power of its epochs, and 0.0
where the episode terminated. A truncated step keeps its discount: `next_values` then holds the value of the state in
which the episode was cut off.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Steps:
    """Recorded steps, all [rows, steps] and of one floating dtype but for `follows`.

    Raises:
        ValueError: the shapes or dtypes differ.
    """

    rewards: Tensor
    #: Value estimates of the states that were acted in, and of those that were reached.
    values: Tensor
    next_values: Tensor
    #: In 0..1; 0.0 where the episode terminated.
    discounts: Tensor
    #: bool: whether the next step of the row is the next one of this episode.
    follows: Tensor

    def __post_init__(self) -> None:
        figures = (self.rewards, self.values, self.next_values, self.discounts)
        if self.rewards.dim() != 2 or {tensor.shape for tensor in (*figures, self.follows)} != {self.rewards.shape}:
            raise ValueError(f"steps are [rows, steps] alike, not {[tuple(tensor.shape) for tensor in figures]}")
        if {tensor.dtype for tensor in figures} != {self.rewards.dtype} or not self.rewards.is_floating_point():
            raise ValueError(f"steps are of one floating dtype, not {[tensor.dtype for tensor in figures]}")
        if self.follows.dtype != torch.bool:
            raise ValueError(f"follows is bool, not {self.follows.dtype}")


@dataclass(frozen=True)
class Returns:
    """Advantages of the actions taken, and what the critic should have said; both [rows, steps], without gradient."""

    advantages: Tensor
    value_targets: Tensor


def generalised_advantages(steps: Steps, *, trace: float) -> Returns:
    """Return the advantages GAE(trace) of Schulman et al. (2016, arXiv 1506.02438), and values plus advantages.

    `trace` is lambda, in 0..1. Right only for steps that the policy to be improved collected itself; see `v_trace`.
    """
    return v_trace(steps, torch.ones_like(steps.rewards), trace=trace)


def v_trace(
    steps: Steps, ratios: Tensor, *, trace: float, ratio_max: float = 1.0, trace_ratio_max: float = 1.0
) -> Returns:
    """Return V-trace targets (Espeholt et al., 2018, arXiv 1802.01561) and the advantages that belong to them.

    The advantage of a step holds the corrections of the steps after it, and not its own: that one is the objective's
    (Hilton, Cobbe and Schulman, 2021, arXiv 2110.00641). Where every ratio is 1.0, both are those of
    `generalised_advantages`, bit for bit.

    Args:
        steps: The recorded steps.
        ratios: pi(a|s) / mu(a|s) of the actions taken, [rows, steps], of the policy whose values are wanted over
            the one that collected the steps.
        trace: lambda, in 0..1, which scales every trace.
        ratio_max: Bound of the ratio that weighs a step's own error (rho bar).
        trace_ratio_max: Bound of the ratio that passes on what comes later (c bar).
    """
    with torch.no_grad():
        errors = steps.rewards + steps.discounts * steps.next_values - steps.values
        weights, passed = ratios.clamp(max=ratio_max), ratios.clamp(max=trace_ratio_max)
        traces = steps.discounts * trace * steps.follows
        advantages, corrections = torch.empty_like(errors), torch.empty_like(errors)
        later = torch.zeros_like(errors[:, 0])
        for step in range(errors.shape[1] - 1, -1, -1):
            advantages[:, step] = errors[:, step] + traces[:, step] * later
            later = weights[:, step] * errors[:, step] + traces[:, step] * (passed[:, step] * later)
            corrections[:, step] = later
        return Returns(advantages, steps.values + corrections)
