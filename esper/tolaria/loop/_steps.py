"""The pieces of an epoch's steps: clipping by owner, a batch in parts, and the epoch's figures."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from esper.tolaria.loop._packet import EpochStats
from esper.tolaria.tasks._evaluation import batches, hits
from esper.tolaria.tasks._tasks import Split


def clip_owner(optimizer: torch.optim.Optimizer, norm: float) -> None:
    """Scale the gradients of all that `optimizer` trains down to the L2 norm `norm` of all of them together.

    By the optimiser's own list and not the model's: seeds that blend are submodules of the model, and have their own.
    """
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.nn.utils.clip_grad_norm_(trained, norm)


def parts(inputs: Tensor, targets: Tensor, count: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Return a batch in at most `count` parts of equal size (the last may be short)."""
    if count == 1:
        return ((inputs, targets),)
    return batches(Split(inputs, targets), math.ceil(len(targets) / count))


class Tally:
    """Adds up an epoch without waiting for the device at every step."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._correct: list[Tensor] = []
        self._counts: list[int] = []
        self._predictions = 0

    def add(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        self._losses.append(loss)
        self._correct.append(hits(outputs, targets))
        self._counts.append(len(targets))
        self._predictions += targets.numel()

    def stats(
        self, *, epoch: int, steps: int, gradient_norm: float, learning_rate: float, seconds: float
    ) -> EpochStats:
        samples = sum(self._counts)
        losses = torch.stack(self._losses).tolist()
        return EpochStats(
            epoch=epoch,
            steps=steps,
            samples=samples,
            loss=math.fsum(loss * count for loss, count in zip(losses, self._counts, strict=True)) / samples,
            accuracy=int(torch.stack(self._correct).sum()) / self._predictions,
            gradient_norm=gradient_norm,
            learning_rate=learning_rate,
            seconds=seconds,
        )
