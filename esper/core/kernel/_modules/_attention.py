"""Modules of the words that attend.

Written out as products and softmax: unlike fused kernels these are deterministic forward and backward everywhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.core.kernel._modules._builder import Builder, Worded
from esper.core.kernel._modules._positions import padded, window
from esper.core.kernel._word import NodePlan

# Legend: x_BPF is a batch of B samples, position axes P, F features; N positions in a row, H heads, W features a head.


class _Headed(Worded):
    """What all dot-product attention shares: one map to queries, keys and values, by heads."""

    weight: Tensor
    bias: Tensor

    def triple(self, x_BPF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, already scaled, keys and values, (B, H, N, W) each."""
        heads, width = self.node.count("heads"), self.node.count("width")
        mapped = functional.linear(x_BPF, self.weight, self.bias)
        query, key, value = mapped.reshape(x_BPF.shape[0], math.prod(x_BPF.shape[1:-1]), 3, heads, width).permute(
            2, 0, 3, 1, 4
        )
        return query / math.sqrt(width), key, value

    def joined(self, out_BHNW: Tensor, x_BPF: Tensor) -> Tensor:
        """Return the heads side by side, at the positions of x."""
        return out_BHNW.transpose(1, 2).reshape(*x_BPF.shape[:-1], self.node.out_shape[-1])


class Attention(_Headed):
    """Multi-head attention (Vaswani et al. 2017), causal in a sequence, within a window or tile where asked."""

    hidden: Tensor | None

    def __init__(self, node: NodePlan, children: Sequence[nn.Module], dtype: torch.dtype) -> None:
        super().__init__(node, children, dtype)
        self.register_buffer("hidden", _hidden(node), persistent=False)

    def forward(self, x_BPF: Tensor) -> Tensor:
        query, key, value = self.triple(x_BPF)
        scores = query @ key.mT
        if self.hidden is not None:
            scores = scores.masked_fill(self.hidden, -math.inf)
        return self.joined(torch.softmax(scores, dim=-1) @ value, x_BPF)


class LatentAttention(_Headed):
    """Induced set attention: latents read the positions, positions read the latents (Lee et al. 2019)."""

    latents: Tensor

    def forward(self, x_BPF: Tensor) -> Tensor:
        query, key, value = self.triple(x_BPF)
        asked = self.latents / math.sqrt(self.latents.shape[-1])
        read_BHMW = torch.softmax(asked @ key.mT, dim=-1) @ value
        return self.joined(torch.softmax(query @ read_BHMW.mT, dim=-1) @ read_BHMW, x_BPF)


class RunningLatentAttention(_Headed):
    """Induced set attention in which position t reads latents that have read the positions up to t."""

    latents: Tensor
    hidden: Tensor

    def __init__(self, node: NodePlan, children: Sequence[nn.Module], dtype: torch.dtype) -> None:
        super().__init__(node, children, dtype)
        self.register_buffer("hidden", _later(node.in_shape[0]), persistent=False)

    def forward(self, x_BPF: Tensor) -> Tensor:
        query, key, value = self.triple(x_BPF)
        scores_BHMN = (self.latents / math.sqrt(self.latents.shape[-1])) @ key.mT
        scores_BHMNN = scores_BHMN.unsqueeze(-2).masked_fill(self.hidden, -math.inf)
        read_BHNMW = (torch.softmax(scores_BHMNN, dim=-1) @ value.unsqueeze(2)).transpose(2, 3)
        chosen_BHN1M = torch.softmax(query.unsqueeze(-2) @ read_BHNMW.mT, dim=-1)
        return self.joined((chosen_BHN1M @ read_BHNMW).squeeze(-2), x_BPF)


class GraphAttention(Worded):
    """Additive attention over direct neighbours and itself (Velickovic et al. 2018)."""

    weight: Tensor
    bias: Tensor
    asking: Tensor
    asked: Tensor
    absent: Tensor

    def __init__(self, node: NodePlan, children: Sequence[nn.Module], dtype: torch.dtype) -> None:
        super().__init__(node, children, dtype)
        self._starts = _neighbours(len(node.in_shape) - 1, causal=node.causal)
        here = torch.ones(1, *node.in_shape[:-1], 1)
        self.register_buffer("absent", self._near(here)[0, ..., 0] == 0.0, persistent=False)

    def forward(self, x_BPF: Tensor) -> Tensor:
        values = functional.linear(x_BPF, self.weight, self.bias)
        asked_BPK = self._near((values * self.asked).sum(dim=-1, keepdim=True)).squeeze(-1)
        asking_BP1 = (values * self.asking).sum(dim=-1, keepdim=True)
        # 0.2 is the slope of the paper.
        scores = functional.leaky_relu(asking_BP1 + asked_BPK, 0.2).masked_fill(self.absent, -math.inf)
        return (torch.softmax(scores, dim=-1).unsqueeze(-1) * self._near(values)).sum(dim=-2)

    def _near(self, x_BPF: Tensor) -> Tensor:
        """Return (B, P, K, F): of every position the K neighbours, zero where there is none."""
        margin = padded(x_BPF, 2, 0) if self.node.causal else padded(x_BPF, 1, 1)
        return torch.stack([window(margin, starts, x_BPF.shape[1:-1]) for starts in self._starts], dim=-2)


class ChannelAttention(Worded):
    """The mean over heads of a softmax over the features, times their number."""

    weight: Tensor
    bias: Tensor

    def forward(self, x_BPF: Tensor) -> Tensor:
        heads, features = self.node.count("heads"), x_BPF.shape[-1]
        scores = functional.linear(x_BPF, self.weight, self.bias).reshape(*x_BPF.shape[:-1], heads, features)
        return torch.softmax(scores, dim=-1).mean(dim=-2) * features


class FastWeights(Worded):
    """A linear map that learns from the sample itself before it is used (Schmidhuber 1992; Sun et al. 2024).

    `steps` gradient steps on the mean of |v - W k|^2 / 2 over the positions, from trained slow weights and at a
    trained rate; then W q. In a sequence the weights that answer at t have learnt from the positions up to t.
    The step is the delta rule, written by the products of keys, so that no weights per position are ever held.
    """

    weight: Tensor
    bias: Tensor
    slow: Tensor
    rate: Tensor
    share: Tensor

    def __init__(self, node: NodePlan, children: Sequence[nn.Module], dtype: torch.dtype) -> None:
        super().__init__(node, children, dtype)
        places = math.prod(node.in_shape[:-1])
        share = torch.full((places, places), 1.0 / places, dtype=dtype)
        if node.causal:
            share = torch.tril(torch.ones(places, places, dtype=dtype)) / torch.arange(1, places + 1)[:, None]
        self.register_buffer("share", share.to(dtype), persistent=False)

    def forward(self, x_BPF: Tensor) -> Tensor:
        places = self.share.shape[0]
        mapped = functional.linear(x_BPF, self.weight, self.bias).reshape(x_BPF.shape[0], places, self.weight.shape[0])
        query, key, value = mapped.chunk(3, dim=-1)
        # Keys of length one: a step at a rate below one never overshoots.
        key = functional.normalize(key, dim=-1)
        pull = self.share * torch.sigmoid(self.rate)
        known, wanted = (key @ key.mT) * pull, value - key @ self.slow.mT
        learnt = torch.zeros_like(value)
        for _ in range(self.node.count("steps")):
            learnt = learnt + (wanted - known @ learnt)
        answer = query @ self.slow.mT + ((query @ key.mT) * pull) @ learnt
        return answer.reshape(*x_BPF.shape[:-1], self.node.out_shape[-1])


def _later(length: int) -> Tensor:
    """Return (length, length): whether position j, the column, comes after position i, the row."""
    return torch.ones(length, length, dtype=torch.bool).triu(diagonal=1)


def _hidden(node: NodePlan) -> Tensor | None:
    """Return which positions (columns) each position (row) may not see; None where it sees all."""
    size, places = node.count("window"), node.in_shape[:-1]
    hidden = _later(places[0]) if node.causal else None
    if size == 0:
        return hidden
    total = math.prod(places)
    far = torch.zeros(total, total, dtype=torch.bool)
    for place in torch.meshgrid(*(torch.arange(axis) for axis in places), indexing="ij"):
        row, column = place.reshape(-1, 1), place.reshape(1, -1)
        if node.attributes["tiled"]:
            far |= row // size != column // size
        else:
            far |= row - column >= size if node.causal else (row - column).abs() > size // 2
    return far if hidden is None else far | hidden


def _neighbours(axes: int, *, causal: bool) -> list[tuple[int, ...]]:
    """Return where each neighbour's copy starts in what was padded by one, in a sequence by two before."""
    if causal:
        return [(0,), (1,), (2,)]
    steps = itertools.product((-1, 0, 1), repeat=axes)
    return [tuple(1 + step for step in at) for at in steps if sum(map(abs, at)) <= 1]


ATTENTION_BUILDERS: Final[Mapping[str, Builder]] = {
    "attention": Attention,
    "latent_attention": LatentAttention,
    "running_latent_attention": RunningLatentAttention,
    "graph_attention": GraphAttention,
    "channel_attention": ChannelAttention,
    "fast_weights": FastWeights,
}
