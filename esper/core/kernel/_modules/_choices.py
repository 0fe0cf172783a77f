"""Modules of the words that weigh their children, or run one child again and again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from esper.core.kernel._modules._builder import Builder, Worded
from esper.core.kernel._modules._positions import prefix_sum

# Legend: x_BPF is a batch of B samples, position axes P, F features; E experts, the first child being their router.


class Routed(Worded):
    """A soft mixture of experts (Jacobs et al. 1991; over convolutions Yang et al. 2019, Chen et al. 2020)."""

    def forward(self, x_BPF: Tensor) -> Tensor:
        router, *experts = self.children()
        weights_BPE = torch.softmax(router(x_BPF), dim=-1)
        answers_BPFE = torch.stack([expert(x_BPF) for expert in experts], dim=-1)
        return (answers_BPFE * weights_BPE.unsqueeze(-2)).sum(dim=-1)


class Switched(Worded):
    """A switch: each position goes to its likeliest expert, first come first served (Fedus et al. 2022).

    What finds its expert full yields zero. Positions come in order, so that in a sequence none takes the place of
    an earlier one. A vector has one position, so there the samples of a batch come in order, in training mode alone:
    what is evaluated must not depend on who comes along.
    """

    def forward(self, x_BPF: Tensor) -> Tensor:
        router, *experts = self.children()
        weights_BPE = torch.softmax(router(x_BPF), dim=-1)
        served_BPE = weights_BPE * self._served(weights_BPE.detach())
        answers_BPFE = torch.stack([expert(x_BPF) for expert in experts], dim=-1)
        return (answers_BPFE * served_BPE.unsqueeze(-2)).sum(dim=-1)

    def _served(self, weights_BPE: Tensor) -> Tensor:
        """Return 1 where a position's first choice has room for it, else 0."""
        experts = weights_BPE.shape[-1]
        wishes = weights_BPE.argmax(dim=-1, keepdim=True) == torch.arange(experts, device=weights_BPE.device)
        chosen_BPE = wishes.to(weights_BPE.dtype)
        vector = weights_BPE.dim() == 2
        if vector and not self.training:
            return chosen_BPE
        queue_BNE = chosen_BPE.unsqueeze(0) if vector else chosen_BPE.flatten(1, -2)
        room = math.ceil(self.node.attributes["capacity"] * queue_BNE.shape[1] / experts)
        return chosen_BPE * (prefix_sum(queue_BNE) <= room).to(weights_BPE.dtype).reshape(weights_BPE.shape)


class Mixed(Worded):
    """A mixed operation: a softmax over candidates, sharper at a low temperature (Liu et al. 2019)."""

    alpha: Tensor

    def forward(self, x_BPF: Tensor) -> Tensor:
        weights = torch.softmax(self.alpha / self.node.attributes["temperature"], dim=0)
        return (torch.stack([child(x_BPF) for child in self.children()], dim=-1) * weights).sum(dim=-1)


class Integrate(Worded):
    """The flow of dx/dt = child(x) from time 0 to 1 by the midpoint rule (Chen et al. 2018)."""

    def forward(self, x_BPF: Tensor) -> Tensor:
        slope, steps = self.get_submodule("0"), self.node.count("steps")
        for _ in range(steps):
            middle = x_BPF + slope(x_BPF) * (0.5 / steps)
            x_BPF = x_BPF + slope(middle) * (1.0 / steps)
        return x_BPF


class Recur(Worded):
    """One cell again and again, shown the input each time (Bai et al. 2019)."""

    def forward(self, x_BPF: Tensor) -> Tensor:
        cell = self.get_submodule("0")
        out: Tensor = cell(x_BPF)
        for _ in range(self.node.count("steps") - 1):
            out = cell(out + x_BPF)
        return out


CHOICE_BUILDERS: Final[Mapping[str, Builder]] = {
    "routed": Routed,
    "switched": Switched,
    "mixed": Mixed,
    "integrate": Integrate,
    "recur": Recur,
}
