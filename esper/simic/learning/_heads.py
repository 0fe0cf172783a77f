"""Factored actions: one masked categorical distribution for each head, their log probabilities added up.

A head that a decision does not use has one legal action, and so adds nothing to log probability, entropy or
divergence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def masked_log_probabilities(logits_BA: Tensor, mask_BA: Tensor) -> Tensor:
    """Return the log probabilities of a head, [batch, actions]: minus infinity exactly where the mask is False.

    Raises:
        ValueError: a row allows no action.
    """
    if not bool(mask_BA.any(dim=-1).all()):
        raise ValueError("a decision allows no action of a head")
    return torch.log_softmax(logits_BA.masked_fill(~mask_BA, -torch.inf), dim=-1)


def taken(log_probabilities: Sequence[Tensor], chosen_BH: Tensor) -> Tensor:
    """Return the log probability of the actions taken, [batch]; `chosen_BH` holds the index taken of each head."""
    picked = [
        head.gather(-1, chosen_BH[:, index : index + 1]).squeeze(-1) for index, head in enumerate(log_probabilities)
    ]
    return torch.stack(picked).sum(dim=0)


def entropy(log_probabilities: Sequence[Tensor]) -> Tensor:
    """Return the entropy of all heads together in nats, [batch]."""
    return torch.stack([-_expected(head.exp(), head) for head in log_probabilities]).sum(dim=0)


def divergence(behaviour: Sequence[Tensor], log_probabilities: Sequence[Tensor]) -> Tensor:
    """Return KL(mu || pi) of all heads together in nats, [batch]; `behaviour` holds mu's probabilities.

    Infinite where pi gives nothing to what mu did: that policy cannot be judged from this log.
    """
    parts = [
        _expected(probabilities, probabilities.log()) - _expected(probabilities, head)
        for probabilities, head in zip(behaviour, log_probabilities, strict=True)
    ]
    return torch.stack(parts).sum(dim=0)


def _expected(probabilities: Tensor, values: Tensor) -> Tensor:
    """Return the mean of `values` under `probabilities`; what never happens counts nothing, be it infinite."""
    possible = probabilities > 0.0
    # Twice: what is not chosen must be finite too, or its gradient is not.
    return (probabilities * values.masked_fill(~possible, 0.0)).masked_fill(~possible, 0.0).sum(dim=-1)
