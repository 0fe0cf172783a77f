"""Measuring a network without changing it, and counting what its forward costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from esper.core.apart import measured
from esper.core.flops import count_multiply_adds
from esper.core.inputs import Batch, Inputs, Output, Targets, call, copied, samples_in, scores_of
from esper.tolaria.tasks._tasks import Loss, Split

#: Bounds the memory of one evaluation pass, in predictions; a constant, because another chunking sums in another order.
_EVALUATION_BATCH: Final = 1024


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and accuracy (0..1) over one part of a data set."""

    loss: float
    accuracy: float


def evaluate(module: nn.Module, split: Split, loss: Loss) -> Evaluation:
    """Return loss and accuracy of `module` on `split`, in eval mode; parameters, buffers and RNG stay as they are."""
    total, correct = 0.0, 0
    with measured(module):
        for inputs, targets in batches(split, max(1, _EVALUATION_BATCH * len(split) // split.predictions)):
            outputs = module(inputs.clone())
            total += float(loss(outputs, targets)) * len(targets)
            correct += int(hits(outputs, targets))
    return Evaluation(loss=total / len(split), accuracy=correct / split.predictions)


def evaluate_batches(
    module: nn.Module, probe: Sequence[Batch], loss: Callable[[Output, Targets], Tensor]
) -> Evaluation:
    """Return mean loss and accuracy over the samples of batches, in eval mode; `module` is left as it was.

    It may read and return whatever `esper.core.inputs` knows. The accuracy is that of the largest score where the
    targets name one class for each row of scores (the outputs, their `logits`, or the first of a tuple), else 0.
    """
    total, samples, correct, predictions = 0.0, 0, 0, 0
    with measured(module):
        for inputs, targets in probe:
            outputs = call(module, copied(inputs))
            count = samples_in(inputs)
            total, samples = total + float(loss(outputs, targets)) * count, samples + count
            scores = scores_of(outputs)
            if scores is not None and isinstance(targets, Tensor) and scores.shape[:-1] == targets.shape:
                correct, predictions = correct + int(hits(scores, targets)), predictions + targets.numel()
    return Evaluation(loss=total / samples, accuracy=correct / predictions if predictions else 0.0)


def hits(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return how many of `targets` the outputs name (0-d): by their largest value, classes in the last dimension."""
    return (outputs.argmax(dim=-1) == targets).sum()


def batches(split: Split, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (inputs, targets) of consecutive batches of `size`; the last may be short."""
    return zip(torch.split(split.inputs, size), torch.split(split.targets, size), strict=True)


def multiply_adds_per_sample(module: nn.Module, sample: Inputs) -> int:
    """Return the multiply-adds of one sample's forward; `sample` is a small batch [B, ...] with B >= 1.

    Counts what torch's flop counter counts (matrix products, convolutions, attention), two flops each;
    elementwise work is not counted.
    """
    with measured(module):
        return count_multiply_adds(lambda: call(module, copied(sample))) // samples_in(sample)
