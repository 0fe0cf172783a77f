"""Small convolutional networks for the tasks whose samples have positions: one line of them, or a square."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from esper.tolaria.tasks._tasks import Host, SlotSpec

_KERNEL = 3


def cnn1d_host(*, length: int, channels: int, classes: int, batch_norm: bool) -> Callable[[], Host]:
    """Return a factory of hosts over one channel of `length` positions; x is [B, length].

    A stride-2 stem, one convolution that keeps positions (the slot: a branch of layout "map1d"), a stride-2
    convolution and a linear head on all positions. Few channels on purpose, so that growth has something to give.
    """
    positions = math.ceil(math.ceil(length / 2) / 2)

    def make() -> Host:
        return _host(
            view=nn.Unflatten(1, (1, length)),
            stem=_stage(nn.Conv1d(1, channels, _KERNEL, stride=2, padding=1), _norm1d(channels, batch_norm)),
            body=_stage(nn.Conv1d(channels, channels, _KERNEL, padding=1), _norm1d(channels, batch_norm)),
            tail=_stage(nn.Conv1d(channels, channels, _KERNEL, stride=2, padding=1), _norm1d(channels, batch_norm)),
            head=nn.Linear(channels * positions, classes),
        )

    return make


def cnn2d_host(*, side: int, channels: int, classes: int, batch_norm: bool) -> Callable[[], Host]:
    """Return a factory of hosts over one channel of `side` x `side` pixels; x is [B, side * side], row by row.

    As `cnn1d_host`, with two spatial dimensions: its slot is a branch of layout "map2d".
    """
    positions = math.ceil(math.ceil(side / 2) / 2) ** 2

    def make() -> Host:
        return _host(
            view=nn.Unflatten(1, (1, side, side)),
            stem=_stage(nn.Conv2d(1, channels, _KERNEL, stride=2, padding=1), _norm2d(channels, batch_norm)),
            body=_stage(nn.Conv2d(channels, channels, _KERNEL, padding=1), _norm2d(channels, batch_norm)),
            tail=_stage(nn.Conv2d(channels, channels, _KERNEL, stride=2, padding=1), _norm2d(channels, batch_norm)),
            head=nn.Linear(channels * positions, classes),
        )

    return make


def _host(*, view: nn.Module, stem: nn.Module, body: nn.Module, tail: nn.Module, head: nn.Module) -> Host:
    # Flattened, not pooled: the backward of adaptive pooling is not deterministic on CUDA.
    module = nn.Sequential(OrderedDict(view=view, stem=stem, body=body, tail=tail, flat=nn.Flatten(), head=head))
    return Host(module, (SlotSpec("body", "branch"),))


def _stage(convolution: nn.Conv1d | nn.Conv2d, norm: nn.Module | None) -> nn.Sequential:
    """Return convolution, norm (if any) and ReLU, initialised after He et al. (2015)."""
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    layers: OrderedDict[str, nn.Module] = OrderedDict(convolution=convolution)
    if norm is not None:
        layers["norm"] = norm
    layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)


def _norm1d(channels: int, wanted: bool) -> nn.Module | None:
    return nn.BatchNorm1d(channels) if wanted else None


def _norm2d(channels: int, wanted: bool) -> nn.Module | None:
    return nn.BatchNorm2d(channels) if wanted else None
