"""Modules of the feature-wise words and of those that combine their children."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.core.kernel._modules._builder import Builder, Worded
from esper.core.kernel._word import NodePlan

# Legend: x_BF is a batch of B samples, any positions, and F features last.


class Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x_BF: Tensor) -> Tensor:
        return x_BF * self.factor


class Gain(Worded):
    """Multiplies each feature by a trained factor (LayerScale, Touvron et al. 2021, begun at zero as ReZero is)."""

    weight: Tensor

    def forward(self, x_BF: Tensor) -> Tensor:
        return x_BF * self.weight


class ScalarGain(Worded):
    """Multiplies everything by one trained factor (ReZero, Bachlechner et al. 2020), on as many features as asked."""

    weight: Tensor

    def forward(self, x_BF: Tensor) -> Tensor:
        return _fit(x_BF, self.node.out_shape[-1]) * self.weight


class Fit(Worded):
    """Cuts features off, or adds zeros behind them."""

    def forward(self, x_BF: Tensor) -> Tensor:
        return _fit(x_BF, self.node.out_shape[-1])


class Sine(nn.Module):
    """sin(x), as a periodic activation (Sitzmann et al. 2020)."""

    def forward(self, x_BF: Tensor) -> Tensor:
        return torch.sin(x_BF)


class Gate(nn.Linear):
    """The logistic function of a linear map."""

    def forward(self, x_BF: Tensor) -> Tensor:
        return torch.sigmoid(functional.linear(x_BF, self.weight, self.bias))


class GroupedLinear(Worded):
    """A block-diagonal linear map."""

    weight: Tensor
    bias: Tensor

    def forward(self, x_BF: Tensor) -> Tensor:
        groups, _outputs, inputs = self.weight.shape
        x_BG1I = x_BF.reshape(*x_BF.shape[:-1], groups, 1, inputs)
        return (x_BG1I @ self.weight.mT).flatten(-3) + self.bias


class Maxout(Worded):
    """The largest of several linear maps, feature by feature (Goodfellow et al. 2013)."""

    weight: Tensor
    bias: Tensor

    def forward(self, x_BF: Tensor) -> Tensor:
        pieces = functional.linear(x_BF, self.weight, self.bias)
        return pieces.reshape(*x_BF.shape[:-1], self.node.count("pieces"), self.node.out_shape[-1]).amax(dim=-2)


class BatchNorm(Worded):
    """Normalises each feature over the batch and all positions (Ioffe & Szegedy 2015).

    `momentum` is the share of the running statistics that a forward in training mode keeps. A lone value has no
    spread, so that with one the running statistics are used in training mode too.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_variance: Tensor

    def forward(self, x_BF: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_variance
        if self.training and x_BF[..., 0].numel() > 1:
            over = tuple(range(x_BF.dim() - 1))
            # Under autocast activations may come in half precision; statistics are kept in full, as torch does.
            variance, mean = torch.var_mean(x_BF.to(self.running_mean.dtype), dim=over, correction=0)
            self._follow(mean.detach(), variance.detach(), x_BF[..., 0].numel())
        inverse = torch.rsqrt(variance + self.node.attributes["epsilon"])
        return (x_BF - mean) * inverse * self.weight + self.bias

    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        fresh = 1.0 - self.node.attributes["momentum"]
        with torch.no_grad():
            self.running_mean.lerp_(mean, fresh)
            # As a sample of all data: the unbiased estimate.
            self.running_variance.lerp_(variance * (count / (count - 1)), fresh)


class DynamicTanh(Worded):
    """weight * tanh(alpha * x) + bias, a norm without statistics (Zhu et al. 2025)."""

    weight: Tensor
    bias: Tensor
    alpha: Tensor

    def forward(self, x_BF: Tensor) -> Tensor:
        return torch.tanh(self.alpha * x_BF) * self.weight + self.bias


class Residual(nn.ModuleList):
    """x + child(x) (He et al. 2016)."""

    def forward(self, x_BF: Tensor) -> Tensor:
        out: Tensor = x_BF + self[0](x_BF)
        return out


class Concat(nn.ModuleList):
    """What each child makes of x, side by side (Huang et al. 2017)."""

    def forward(self, x_BF: Tensor) -> Tensor:
        return torch.cat([child(x_BF) for child in self], dim=-1)


class Sum(nn.ModuleList):
    """The sum of what the children make of x."""

    def forward(self, x_BF: Tensor) -> Tensor:
        out: Tensor = self[0](x_BF)
        for child in list(self)[1:]:
            out = out + child(x_BF)
        return out


class Product(nn.ModuleList):
    """first(x) * second(x): a gated linear unit (Shazeer 2020) when the first bends and the second does not."""

    def forward(self, x_BF: Tensor) -> Tensor:
        out: Tensor = self[0](x_BF) * self[1](x_BF)
        return out


class Modulate(nn.ModuleList):
    """x * child(x), broadcast over the axes on which the child yields one number (Hu et al. 2018)."""

    def forward(self, x_BF: Tensor) -> Tensor:
        out: Tensor = x_BF * self[0](x_BF)
        return out


class Highway(nn.ModuleList):
    """With t = first(x): t * second(x) + (1 - t) * x (Srivastava et al. 2015)."""

    def forward(self, x_BF: Tensor) -> Tensor:
        carry: Tensor = self[0](x_BF)
        out: Tensor = carry * self[1](x_BF) + (1.0 - carry) * x_BF
        return out


def _fit(x_BF: Tensor, features: int) -> Tensor:
    missing = features - x_BF.shape[-1]
    return functional.pad(x_BF, (0, missing)) if missing > 0 else x_BF[..., :features]


def _linear(node: NodePlan, dtype: torch.dtype, *, bias: bool, kind: type[nn.Linear] = nn.Linear) -> nn.Module:
    # On the meta device nothing is allocated, and the layer's own initialisation draws no random number.
    return kind(node.count("in"), node.count("out"), bias=bias, dtype=dtype, device="meta")


def _layer_norm(node: NodePlan, _children: Sequence[nn.Module], dtype: torch.dtype) -> nn.Module:
    return nn.LayerNorm(node.count("features"), eps=node.attributes["epsilon"], dtype=dtype, device="meta")


def _plain(make: Callable[[], nn.Module]) -> Builder:
    return lambda _node, _children, _dtype: make()


FEATURE_BUILDERS: Final[Mapping[str, Builder]] = {
    "identity": _plain(nn.Identity),
    "relu": _plain(nn.ReLU),
    "gelu": _plain(nn.GELU),
    "silu": _plain(nn.SiLU),
    "tanh": _plain(nn.Tanh),
    "sigmoid": _plain(nn.Sigmoid),
    "sine": _plain(Sine),
    "softmax": _plain(lambda: nn.Softmax(dim=-1)),
    "scale": lambda node, _children, _dtype: Scale(node.attributes["factor"]),
    "dropout": lambda node, _children, _dtype: nn.Dropout(node.attributes["rate"]),
    "fit": Fit,
    "linear": lambda node, _children, dtype: _linear(node, dtype, bias=bool(node.attributes["bias"])),
    "grouped_linear": GroupedLinear,
    "maxout": Maxout,
    "gate": lambda node, _children, dtype: _linear(node, dtype, bias=True, kind=Gate),
    "layer_norm": _layer_norm,
    "batch_norm": BatchNorm,
    "dynamic_tanh": DynamicTanh,
    "sequential": lambda _node, children, _dtype: nn.Sequential(*children),
    "residual": lambda _node, children, _dtype: Residual(children),
    "concat": lambda _node, children, _dtype: Concat(children),
    "sum": lambda _node, children, _dtype: Sum(children),
    "product": lambda _node, children, _dtype: Product(children),
    "modulate": lambda _node, children, _dtype: Modulate(children),
    "highway": lambda _node, children, _dtype: Highway(children),
    "gain": Gain,
    "scalar_gain": ScalarGain,
    "projection": lambda node, _children, dtype: _linear(node, dtype, bias=True),
}
