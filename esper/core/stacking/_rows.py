"""Operations on the rows of some members of a stack.

`rows` hold each row at most once, which makes their backward a copy: deterministic on every device, where torch's own
would add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Legend: N members of the stack, M of them that are meant.


@contextmanager
def rows_once(device: torch.device) -> Iterator[None]:
    """Write rows inside the block as who knows that each is written once.

    Told to be deterministic, torch sorts the rows on a GPU first, half a dozen kernels a write: that is for rows that
    come twice. Nothing else may be computed inside.
    """
    if device.type == "cpu" or not torch.are_deterministic_algorithms_enabled():
        yield
        return
    torch.use_deterministic_algorithms(mode=False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=True)


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
        sound_M = finite_rows(gradient) | trusted_M
        kept = torch.where(per_member(sound_M, gradient), gradient, 0.0)
        whole = gradient.new_zeros(ctx.members, *gradient.shape[1:])
        with rows_once(whole.device):
            return whole.index_copy_(0, rows_M, kept), None, None


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, rows_M: Tensor, addend: Tensor) -> Tensor:  # noqa: ANN401 - torch's own type
        ctx.save_for_backward(rows_M)
        added = output.index_select(0, rows_M).add_(addend)
        whole = output.clone()
        with rows_once(whole.device):
            return whole.index_copy_(0, rows_M, added)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor]:  # noqa: ANN401 - torch's own type
        (rows_M,) = ctx.saved_tensors
        (gradient,) = gradients
        return gradient, None, gradient.index_select(0, rows_M)


def per_member(values_M: Tensor, like: Tensor) -> Tensor:
    """Return one value a member, shaped to act on each member's part of `like` [M, ...]."""
    return values_M.view(-1, *(1,) * (like.dim() - 1))


def finite_rows(values: Tensor) -> Tensor:
    """Return whether all numbers of each member are finite, [M]: whether the largest is, which is NaN if one is."""
    largest_M: Tensor = torch.linalg.vector_norm(values.detach().flatten(1), ord=math.inf, dim=1)
    return largest_M.lt(math.inf)


def fetched(tensors: Sequence[Tensor]) -> list[NDArray[np.float64]]:
    """Return the numbers of tensors on one device, as float64; however many they are, the device is waited for once.

    Integers up to 2**53, booleans and every float32 come as they are.
    """
    if not tensors:
        return []
    flat = torch.cat([tensor.detach().double().reshape(-1) for tensor in tensors]).cpu().numpy()
    parts = np.split(flat, np.cumsum([tensor.numel() for tensor in tensors])[:-1])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


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
    added: Tensor = _Add.apply(output, rows_M, addend)
    return added
