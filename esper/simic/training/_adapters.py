"""Low-rank adapters: a version that differs from its parent by little, and cannot differ by more.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021, arXiv 2106.09685): a weight stays as it is, and
the product of two thin matrices is added. One of them begins at zero, so that a fresh adapter changes nothing; at the
end the product is added once, so that what travels is a plain network. Kept by torch's parametrizations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from esper.core.policy import PolicyNetwork

_WEIGHT = "weight"


class _LowRank(nn.Module):
    """Adds up @ down, [rows, rank] @ [rank, columns], to a weight, [rows, columns]."""

    def __init__(self, rows: int, columns: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, columns, generator=generator) / math.sqrt(columns))
        self.up = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with what was learned."""
        return weight + self.up @ self.down


def attach_adapters(network: PolicyNetwork, rank: int, *, generator: torch.Generator) -> None:
    """Let the actor learn through adapters alone; the critic, which decides nothing, learns as before.

    Weights of the actor that an adapter of this rank would not make thinner, its biases and embeddings stand still,
    too. What the network computes does not change.

    Raises:
        ValueError: the rank is below 1, or so large that nothing would learn.
    """
    fitting = [layer for layer in _actor_layers(network) if 1 <= rank < min(layer.weight.shape)]
    if not fitting:
        raise ValueError(f"adapters of rank {rank} fit no layer of the policy")
    critic = {*network.critic.parameters(), *network.value.parameters()}
    for parameter in network.parameters():
        parameter.requires_grad_(parameter in critic)
    for layer in fitting:
        rows, columns = layer.weight.shape
        parametrize.register_parametrization(layer, _WEIGHT, _LowRank(rows, columns, rank, generator))


def merge_adapters(network: PolicyNetwork) -> None:
    """Add what the adapters learned to the weights; the network computes the same, and is a plain one again."""
    for layer in _actor_layers(network):
        if parametrize.is_parametrized(layer, _WEIGHT):
            parametrize.remove_parametrizations(layer, _WEIGHT, leave_parametrized=True)


def _actor_layers(network: PolicyNetwork) -> Iterator[nn.Linear]:
    """Yield the linear layers that decide."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and module is not network.value and not name.startswith("critic."):
            yield module
