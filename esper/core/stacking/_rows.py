"""Operations on the rows of some members of a stack.

`rows` hold each row at most once, which makes their backward a copy: deterministic on every device, where torch's own
would add up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Legend: N members of the stack, M of them that are meant.


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, rows_M: Tensor, sound_M: Tensor) -> Tensor:  # noqa: ANN401 - torch's own type
        ctx.save_for_backward(rows_M, sound_M)
        ctx.members = len(source)
        return source.index_select(0, rows_M)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401 - torch's own type
        rows_M, trusted_M = ctx.saved_tensors
        (gradient,) = gradients
        sound_M = torch.isfinite(gradient).flatten(1).all(dim=1) | trusted_M
        kept = torch.where(per_member(sound_M, gradient), gradient, torch.zeros_like(gradient))
        whole = gradient.new_zeros(ctx.members, *gradient.shape[1:])
        return whole.index_copy(0, rows_M, kept), None, None


def per_member(values_M: Tensor, like: Tensor) -> Tensor:
    """Return one value a member, shaped to act on each member's part of `like` [M, ...]."""
    return values_M.view(-1, *(1,) * (like.dim() - 1))


def take_rows(source: Tensor, rows_M: Tensor, *, trusted_M: Tensor | None = None) -> Tensor:
    """Return `source[rows]`, [M, ...]; a member's gradient that is not finite ends here, unless it is trusted."""
    if not source.requires_grad:
        return source.index_select(0, rows_M)
    if trusted_M is None:
        trusted_M = torch.ones_like(rows_M, dtype=torch.bool)
    taken: Tensor = _Take.apply(source, rows_M, trusted_M)
    return taken


def add_rows(output: Tensor, rows_M: Tensor, addend: Tensor) -> Tensor:
    """Return `output` [N, ...] with `addend` [M, ...] added to the rows; all others are the same bits."""
    return output.index_copy(0, rows_M, output.index_select(0, rows_M) + addend)
