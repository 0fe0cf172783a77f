"""The host of every member of a stack: one program, and the members' own parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.core.stacking._parameters import StackedParameters
from esper.core.stacking._programs import Program, Tap

# Legend: N members of the stack, M of them that are meant, B samples of a batch.


@dataclass(frozen=True)
class StackedHost:
    """N hosts of one shape; `template` is one of them, unstacked, for whoever looks at modules and shapes."""

    template: nn.Module
    program: Program
    parameters: StackedParameters
    multiply_adds_per_sample: int

    def __len__(self) -> int:
        return len(self.parameters)

    @property
    def device(self) -> torch.device:
        """Where all of it lies."""
        return self.parameters.flat_NP.device

    def forward(self, x_NB: Tensor, tap: Tap | None = None) -> Tensor:
        """Return the outputs of all members; autograd sees their parameters."""
        return self.program.run(self.parameters.tensors, x_NB, tap)

    def forward_apart(self, x_MB: Tensor, rows_M: Tensor | None, tap: Tap | None = None) -> Tensor:
        """Return the outputs of some members (None: of all) by detached parameters: only a tap can bring gradients."""
        return self.program.run(self._detached(rows_M), x_MB.detach(), tap)

    def _detached(self, rows_M: Tensor | None) -> Mapping[str, Tensor]:
        flat = self.parameters.flat_NP
        return self.parameters.views(flat if rows_M is None else flat.index_select(0, rows_M))


def cross_entropies(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return each member's mean cross-entropy, [N], of logits [N, B, ..., C] for classes [N, B, ...]."""
    each = F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
    return each.view(len(outputs), -1).mean(dim=1)


def hits(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return how many classes each member names, [N], by its largest value."""
    return (outputs.argmax(dim=-1) == targets).flatten(1).sum(dim=1)
