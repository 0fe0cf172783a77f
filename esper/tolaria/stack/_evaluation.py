"""Measuring all networks of a stack on one part of the data."""

from __future__ import annotations

from typing import Final

import torch

from esper.core.stacking import StackedHost, Tap, cross_entropies, hits
from esper.tolaria.tasks._evaluation import Evaluation
from esper.tolaria.tasks._tasks import Split

#: Predictions of one pass, all members together; a constant, because another chunking sums in another order.
_PASS: Final = 2**21


@torch.no_grad()
def evaluate_stack(host: StackedHost, split: Split, tap: Tap | None) -> list[Evaluation]:
    """Return loss and accuracy of every member on `split`; nothing of them changes. Waits for the device."""
    members = len(host)
    per_sample = members * max(1, split.predictions // len(split))
    size = max(1, _PASS // per_sample)
    totals = torch.zeros(members, dtype=torch.float64, device=host.device)
    correct = torch.zeros(members, dtype=torch.int64, device=host.device)
    for at in range(0, len(split), size):
        inputs, targets = split.inputs[at : at + size], split.targets[at : at + size]
        outputs = host.forward(inputs.expand(members, *inputs.shape), tap)
        expected = targets.expand(members, *targets.shape)
        totals += cross_entropies(outputs, expected).double() * len(targets)
        correct += hits(outputs, expected)
    losses, found = (totals / len(split)).tolist(), (correct.double() / split.predictions).tolist()
    return [Evaluation(loss, accuracy) for loss, accuracy in zip(losses, found, strict=True)]
