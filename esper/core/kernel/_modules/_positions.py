"""Modules of the words that look along the positions of a sample.

Deterministic on every device: shifted copies and products take the place of scatter, gather and interpolation.
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
from esper.core.kernel._word import NodePlan
from esper.core.kernel._words._positions import DEFORMABLE_TAPS

# Legend: x_BPF is a batch of B samples of any number of position axes P and F features last.


def padded(x_BPF: Tensor, before: int, after: int, *, value: float = 0.0) -> Tensor:
    """Return x with `before` and `after` more positions along each axis of positions."""
    return functional.pad(x_BPF, (0, 0, *(before, after) * (x_BPF.dim() - 2)), value=value)


def window(x_BPF: Tensor, starts: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Return the positions from `starts` on, `sizes` many along each axis: a shifted copy of what was padded."""
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        x_BPF = x_BPF.narrow(axis + 1, start, size)
    return x_BPF


def prefix_sum(x_BLF: Tensor) -> Tensor:
    """Return the sum of each position and all before it, in log2(L) shifted additions (Hillis & Steele 1986).

    `torch.cumsum` has no deterministic form on CUDA.
    """
    length, step = x_BLF.shape[1], 1
    while step < length:
        x_BLF = x_BLF + functional.pad(x_BLF, (0, 0, step, 0))[:, :length]
        step *= 2
    return x_BLF


class Conv(Worded):
    """A convolution over the positions that keeps their number; dilated (Yu & Koltun 2016), in groups, or one-sided."""

    weight: Tensor
    bias: Tensor

    def forward(self, x_BPF: Tensor) -> Tensor:
        dilation, groups = self.node.count("dilation"), self.node.count("groups")
        reach = (self.node.count("kernel") - 1) * dilation
        before = reach if self.node.causal or self.node.attributes["one_sided"] else reach // 2
        x_BFP = padded(x_BPF, before, reach - before).movedim(-1, 1)
        convolve = functional.conv1d if x_BFP.dim() == 3 else functional.conv2d
        out: Tensor = convolve(x_BFP, self.weight, self.bias, dilation=dilation, groups=groups)
        return out.movedim(1, -1)


class DeformableConv(Worded):
    """A convolution whose taps move by less than one position, as the input says (Dai et al. 2017).

    Value between positions are linear mixes of the two neighbours along each axis, taken from shifted copies. In a
    sequence the taps rest at 3, 2 and 1 positions back, so that even one that moves ahead sees nothing to come.
    """

    weight: Tensor
    bias: Tensor
    offset_weight: Tensor
    offset_bias: Tensor

    def forward(self, x_BPF: Tensor) -> Tensor:
        places, axes = x_BPF.shape[1:-1], x_BPF.dim() - 2
        reach = DEFORMABLE_TAPS - 1
        margin = padded(x_BPF, 2 * reach, 0) if self.node.causal else padded(x_BPF, reach, reach)
        hats_BPGTAD = self._hats(x_BPF, axes)
        steps = list(itertools.product(range(DEFORMABLE_TAPS), repeat=axes))
        taps = []
        for tap, at in enumerate(steps):
            near = [window(margin, [a + b for a, b in zip(at, step, strict=True)], places) for step in steps]
            taps.append(self._mixed(torch.stack(near, dim=-2), hats_BPGTAD[..., tap, :, :], axes))
        return functional.linear(torch.cat(taps, dim=-1), self.weight, self.bias)

    def _hats(self, x_BPF: Tensor, axes: int) -> Tensor:
        """Return how much of the neighbours one before, at, and one after a tap goes into it, along each axis."""
        shape = (self.node.count("groups"), DEFORMABLE_TAPS**axes, axes, 1)
        moved = torch.tanh(functional.linear(x_BPF, self.offset_weight, self.offset_bias))
        moved = moved.reshape(*x_BPF.shape[:-1], *shape)
        # Of three neighbours one apart, at most two are nearer than one to any place within one of the middle.
        before, after = functional.relu(-moved), functional.relu(moved)
        return torch.cat([before, 1.0 - moved.abs(), after], dim=-1)

    def _mixed(self, near_BPNF: Tensor, hats_BPGAD: Tensor, axes: int) -> Tensor:
        weights = hats_BPGAD[..., 0, :]
        if axes == 2:
            weights = (hats_BPGAD[..., 0, :, None] * hats_BPGAD[..., 1, None, :]).flatten(-2)
        groups = self.node.count("groups")
        near = near_BPNF.reshape(*near_BPNF.shape[:-1], groups, near_BPNF.shape[-1] // groups)
        return (near * weights.movedim(-1, -2).unsqueeze(-1)).sum(dim=-3).flatten(-2)


class MaxWindow(Worded):
    """The largest of `kernel` neighbouring positions along each axis, feature by feature."""

    def forward(self, x_BPF: Tensor) -> Tensor:
        kernel = self.node.count("kernel")
        before = kernel - 1 if self.node.causal else (kernel - 1) // 2
        for axis in range(1, x_BPF.dim() - 1):
            size = x_BPF.shape[axis]
            pads = _axis_padding(x_BPF.dim(), axis, before, kernel - 1 - before)
            margin = functional.pad(x_BPF, pads, value=-math.inf)
            for start in range(kernel):
                copy = margin.narrow(axis, start, size)
                x_BPF = copy if start == 0 else torch.maximum(x_BPF, copy)
        return x_BPF


class Context(Worded):
    """The mean over all positions (Hu et al. 2018)."""

    def forward(self, x_BPF: Tensor) -> Tensor:
        over = tuple(range(1, x_BPF.dim() - 1))
        return x_BPF.mean(dim=over, keepdim=True) if over else x_BPF


class RunningContext(Worded):
    """The mean over each position and all before it."""

    def forward(self, x_BLF: Tensor) -> Tensor:
        counts = torch.arange(1, x_BLF.shape[1] + 1, dtype=x_BLF.dtype, device=x_BLF.device)
        return prefix_sum(x_BLF) / counts[:, None]


class FeaturePool(Worded):
    """Mean and largest of the features at each position (Woo et al. 2018)."""

    def forward(self, x_BPF: Tensor) -> Tensor:
        return torch.stack([x_BPF.mean(dim=-1), x_BPF.amax(dim=-1)], dim=-1)


class Coarse(Worded):
    """The child at rarer positions: means of neighbours before it, each of its outputs repeated behind it.

    In a sequence a mean ends at the first position that sees it: position t sees the means of positions up to t.
    """

    def __init__(self, node: NodePlan, children: Sequence[nn.Module], dtype: torch.dtype) -> None:
        super().__init__(node, children, dtype)
        stride, sizes = node.count("stride"), node.in_shape[:-1]
        self.before = stride - 1 if node.causal else 0
        for axis, size in enumerate(sizes):
            first = [stride * index - self.before for index in range(math.ceil(size / stride))]
            held = [min(start + stride, size) - max(start, 0) for start in first]
            inverse = torch.tensor([1.0 / count for count in held], dtype=dtype)
            self.register_buffer(f"share_{axis}", inverse, persistent=False)

    def forward(self, x_BPF: Tensor) -> Tensor:
        sizes = x_BPF.shape[1:-1]
        for axis in range(len(sizes)):
            x_BPF = self._rarer(x_BPF, axis)
        inner: Tensor = self.get_submodule("0")(x_BPF)
        for axis, size in enumerate(sizes):
            inner = self._repeated(inner, axis + 1, size)
        return inner

    def _rarer(self, x_BPF: Tensor, axis: int) -> Tensor:
        share, stride, dim = self.get_buffer(f"share_{axis}"), self.node.count("stride"), axis + 1
        total = len(share) * stride
        after = total - self.before - x_BPF.shape[dim]
        # A negative margin cuts: a sequence's last positions may belong to a mean that none of them may see.
        x_BPF = functional.pad(x_BPF, _axis_padding(x_BPF.dim(), dim, self.before, after))
        shape = (*x_BPF.shape[:dim], len(share), stride, *x_BPF.shape[dim + 1 :])
        return x_BPF.reshape(shape).sum(dim=dim + 1) * share.reshape(-1, *(1 for _ in shape[dim + 2 :]))

    def _repeated(self, x_BPF: Tensor, dim: int, size: int) -> Tensor:
        stride, shape = self.node.count("stride"), x_BPF.shape
        wide = x_BPF.unsqueeze(dim + 1).expand(*shape[: dim + 1], stride, *shape[dim + 1 :])
        return wide.reshape(*shape[:dim], shape[dim] * stride, *shape[dim + 1 :]).narrow(dim, 0, size)


class Pooled(Worded):
    """The child at a fixed number of positions, by matrices along each axis: a mean of shares, linear interpolation."""

    def __init__(self, node: NodePlan, children: Sequence[nn.Module], dtype: torch.dtype) -> None:
        super().__init__(node, children, dtype)
        size = node.count("size")
        for axis, length in enumerate(node.in_shape[:-1]):
            self.register_buffer(f"down_{axis}", _pooling(length, size, dtype), persistent=False)
            self.register_buffer(f"up_{axis}", _interpolation(size, length, dtype), persistent=False)

    def forward(self, x_BPF: Tensor) -> Tensor:
        axes = range(x_BPF.dim() - 2)
        for axis in axes:
            x_BPF = _along(self.get_buffer(f"down_{axis}"), x_BPF, axis + 1)
        inner: Tensor = self.get_submodule("0")(x_BPF)
        for axis in axes:
            inner = _along(self.get_buffer(f"up_{axis}"), inner, axis + 1)
        return inner


class Positional(Worded):
    """x + amplitude * sin(frequency . position + phase): learned Fourier features (Li et al. 2021)."""

    frequency: Tensor
    phase: Tensor
    amplitude: Tensor

    def forward(self, x_BPF: Tensor) -> Tensor:
        angle = self.phase
        for axis, size in enumerate(x_BPF.shape[1:-1]):
            place = torch.arange(size, dtype=x_BPF.dtype, device=x_BPF.device)
            place = place.reshape(-1, *(1 for _ in x_BPF.shape[axis + 2 :]))
            angle = angle + place * self.frequency[axis]
        return x_BPF + self.amplitude * torch.sin(angle)


class Line(nn.Module):
    """The features of a vector as positions with one feature each."""

    def forward(self, x_BF: Tensor) -> Tensor:
        return x_BF.unsqueeze(-1)


class FeatureTokens(Worded):
    """x_i * W_i + b_i as token i (Gorishniy et al. 2021)."""

    weight: Tensor
    bias: Tensor

    def forward(self, x_BF: Tensor) -> Tensor:
        return x_BF.unsqueeze(-1) * self.weight + self.bias


def _axis_padding(dims: int, axis: int, before: int, after: int) -> list[int]:
    """Return what `functional.pad` is told, which counts axes from the last."""
    return [0, 0] * (dims - 1 - axis) + [before, after]


def _along(matrix_NM: Tensor, x_BPF: Tensor, dim: int) -> Tensor:
    """Return x with its axis `dim`, of M positions, mapped to N."""
    return (x_BPF.movedim(dim, -1) @ matrix_NM.mT).movedim(-1, dim)


def _pooling(length: int, size: int, dtype: torch.dtype) -> Tensor:
    """Return the (size, length) matrix whose row i is the mean over share i of the positions."""
    matrix = torch.zeros(size, length, dtype=dtype)
    for row in range(size):
        first, end = row * length // size, -(-(row + 1) * length // size)
        matrix[row, first:end] = 1.0 / (end - first)
    return matrix


def _interpolation(size: int, length: int, dtype: torch.dtype) -> Tensor:
    """Return the (length, size) matrix that draws straight lines between the centres of `size` shares."""
    place = (torch.arange(length, dtype=dtype) + 0.5) * (size / length) - 0.5
    place = place.clamp(0.0, size - 1.0)
    return functional.relu(1.0 - (place[:, None] - torch.arange(size, dtype=dtype)).abs())


POSITION_BUILDERS: Final[Mapping[str, Builder]] = {
    "conv": Conv,
    "deformable_conv": DeformableConv,
    "max_window": MaxWindow,
    "context": Context,
    "running_context": RunningContext,
    "feature_pool": FeaturePool,
    "coarse": Coarse,
    "pooled": Pooled,
    "positional": Positional,
    "line": lambda _node, _children, _dtype: Line(),
    "feature_tokens": FeatureTokens,
    "flatten": lambda _node, _children, _dtype: nn.Flatten(),
}
