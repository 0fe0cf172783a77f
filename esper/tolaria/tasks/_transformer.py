"""A small causal transformer that predicts the next token at every position.

B batch, L positions, D width, H heads, E width of a head, C classes (tokens).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.core.errors import UsageError
from esper.tolaria.tasks._tasks import Host, SlotSpec

#: As GPT-2 draws its embeddings (Radford et al., 2019; read in its published code).
_EMBEDDING_STD = 0.02


class CausalAttention(nn.Module):
    """Multi-head attention in which no position sees a later one (Vaswani et al., 2017, section 3.2).

    Written out in matrix products: torch's fused kernels differ between machines, their backward is not
    deterministic everywhere, and not each is seen by the flop counter. x and the result are [B, L, D].
    """

    mask_LL: Tensor

    def __init__(self, *, width: int, heads: int, length: int, dropout: float) -> None:
        super().__init__()
        self._heads = heads
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        later_LL = torch.ones(length, length, dtype=torch.bool).triu(diagonal=1)
        # Not persistent: it is a constant of the architecture, no weight.
        self.register_buffer("mask_LL", later_LL, persistent=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        batch, length, width = x_BLD.shape
        parts = self.project_in(x_BLD).view(batch, length, 3, self._heads, width // self._heads)
        query_BHLE, key_BHLE, value_BHLE = parts.permute(2, 0, 3, 1, 4)
        scores_BHLL = query_BHLE @ key_BHLE.transpose(-2, -1) * (width // self._heads) ** -0.5
        weights_BHLL = F.softmax(scores_BHLL.masked_fill(self.mask_LL[:length, :length], float("-inf")), dim=-1)
        heard_BHLE = self.dropout(weights_BHLL) @ value_BHLE
        out: Tensor = self.project_out(heard_BHLE.transpose(1, 2).reshape(batch, length, width))
        return out


class Block(nn.Module):
    """Attention and a feed-forward network, each behind a layer norm and beside a residual ("pre-norm")."""

    def __init__(self, *, width: int, heads: int, inner: int, length: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalAttention(width=width, heads=heads, length=length, dropout=dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(widen=nn.Linear(width, inner), gelu=nn.GELU(), narrow=nn.Linear(inner, width))
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor) -> Tensor:
        x_BLD = x_BLD + self.dropout(self.attention(self.attention_norm(x_BLD)))
        out: Tensor = x_BLD + self.dropout(self.mlp(self.mlp_norm(x_BLD)))
        return out


class CausalTransformer(nn.Module):
    """Maps tokens [B, L] (int64) to logits [B, L, C] of the token that comes next at each position."""

    def __init__(
        self, *, classes: int, length: int, width: int, heads: int, depth: int, inner: int, dropout: float
    ) -> None:
        super().__init__()
        if width % heads:
            raise UsageError(
                f"a transformer of width {width} cannot have {heads} heads",
                cause="each head has an equal part of the width",
                next_step="Choose a width that the heads divide",
            )
        self.tokens = nn.Embedding(classes, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(width=width, heads=heads, inner=inner, length=length, dropout=dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.tokens.weight, std=_EMBEDDING_STD)
        nn.init.normal_(self.positions, std=_EMBEDDING_STD)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        x_BLD = self.dropout(self.tokens(tokens_BL) + self.positions[: tokens_BL.shape[1]])
        for block in self.blocks:
            x_BLD = block(x_BLD)
        logits_BLC: Tensor = self.head(self.norm(x_BLD))
        return logits_BLC


def transformer_host(
    *, classes: int, length: int, width: int, heads: int, depth: int, inner: int, dropout: float = 0.1
) -> Callable[[], Host]:
    """Return a factory of causal transformers; a slot spans each block's feed-forward network (layout "sequence").

    `inner` is usually four times the width; one no wider than it leaves growth something to give.
    """

    def make() -> Host:
        module = CausalTransformer(
            classes=classes, length=length, width=width, heads=heads, depth=depth, inner=inner, dropout=dropout
        )
        return Host(module, tuple(SlotSpec(f"blocks.{index}.mlp", "branch") for index in range(depth)))

    return make
