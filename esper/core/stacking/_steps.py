"""Which step of an epoch is computed: a number for eager code, a tensor for captured graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from esper.core.stacking._rows import rows_once


class StepClock:
    """Reads from and writes to tables [S, ...] with a row for each step of an epoch.

    With `captured` the step is a tensor on the device, so that one captured graph computes every step; without, it is
    a number. Both read and write the same rows.
    """

    def __init__(self, device: torch.device, *, captured: bool = False) -> None:
        self.captured = captured
        self.step = 0
        self._cursor = torch.zeros(1, dtype=torch.int64, device=device)

    def go_to(self, step: int) -> None:
        """Stand at `step`, from 0."""
        self.step = step
        if self.captured:
            self._cursor.fill_(step)

    def advance(self) -> None:
        """Let the tensor stand at the next step: what a captured step ends with, since no replay comes by here."""
        self._cursor.add_(1)

    def take(self, table: Tensor) -> Tensor:
        """Return the row of this step."""
        return table.index_select(0, self._cursor)[0] if self.captured else table[self.step]

    def put(self, table: Tensor, value: Tensor) -> None:
        """Write the row of this step."""
        if self.captured:
            with rows_once(table.device):
                table.index_copy_(0, self._cursor, value.unsqueeze(0))
        else:
            table[self.step] = value
