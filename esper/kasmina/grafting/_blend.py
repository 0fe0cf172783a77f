"""Blend modes: how much of a seed's output the host hears, channel by channel or sample by sample, while alpha rises.

In every mode alpha 0 is the host's own output and alpha 1 what the fossilised seed will give, both bit for bit. All
but CONVEX add the seed's output to the host's, as the shadow pass does, so that what was measured there holds.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from esper.core.kernel import CHANNELS_FIRST
from esper.leyline import messages as ly

#: The modes that a command may name.
BLEND_MODES: Final = frozenset(ly.BlendMode.values()) - {ly.BLEND_MODE_UNSPECIFIED}


def channel_dim(layout: str) -> int:
    """Return which dimension of an activation holds its channels."""
    return 1 if layout in CHANNELS_FIRST else -1


def share(mode: ly.BlendMode, alpha: Tensor, output: Tensor, *, dim: int) -> Tensor:
    """Return what the seed's output is multiplied by, in 0..1 and broadcastable to `output`; `alpha` is 0-d.

    CHANNEL: channel c of C rises from 0 to 1 while alpha goes from c/C to (c+1)/C. CONFIDENCE: clamp(2 alpha - m) with
    m the difference of the two largest probabilities, softmax over the channels of `output` at one position: where
    the module cannot tell, the seed is heard from alpha 0 on; where it is certain, from alpha 1/2 on.
    """
    if mode == ly.BLEND_MODE_CHANNEL:
        return _by_channel(alpha, output, dim)
    if mode == ly.BLEND_MODE_CONFIDENCE:
        return (2.0 * alpha - _margin(output, dim)).clamp(0.0, 1.0).to(output.dtype)
    return alpha


def _by_channel(alpha: Tensor, output: Tensor, dim: int) -> Tensor:
    channels = output.shape[dim]
    order = torch.arange(channels, dtype=torch.float32, device=output.device)
    shape = [1] * output.dim()
    shape[dim] = channels
    return (alpha * channels - order).clamp(0.0, 1.0).reshape(shape).to(output.dtype)


def _margin(output: Tensor, dim: int) -> Tensor:
    """Return how sure the output is at each position, in 0..1; 0 where it has but one channel."""
    chances = torch.softmax(output.detach().float(), dim=dim)
    if output.shape[dim] < 2:
        return torch.zeros_like(chances)
    best = torch.topk(chances, 2, dim=dim).values
    return best.narrow(dim, 0, 1) - best.narrow(dim, 1, 1)


def mixed(alpha: Tensor, output: Tensor, instead: Tensor) -> Tensor:
    """Return CONVEX's mean of the host's output and the seed's; at alpha 1 it is the seed's, bit for bit."""
    mean = (1.0 - alpha) * output + alpha * instead
    return torch.where(alpha >= 1.0, instead, mean)
