"""Adam over stacked parameters: elementwise, so that each member's update is its own (Kingma and Ba, 2015).

Everything that depends on the step alone is worked out for a whole epoch ahead, in double precision, and lies in a
table: what remains is the same few operations at every step, whatever each member's rate and age.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Legend: S steps of an epoch, N members, P parameters of one member.

#: torch.optim.Adam's own, which no task or request sets otherwise.
EPSILON: Final = 1e-8
#: Rows of a table: what a step multiplies and adds with.
_KEEP_FIRST, _ADD_FIRST, _KEEP_SECOND, _ADD_SECOND, _STEP_SIZE, _ROOT_SCALE, _DECAY = range(7)


@dataclass(frozen=True)
class AdamTable:
    """The numbers of each step for each member: `values_SKN`, float32 on the parameters' device."""

    values_SKN: Tensor


class AdamMoments:
    """First and second moments of stacked parameters, and the step that uses them."""

    def __init__(self, first_NP: Tensor, second_NP: Tensor) -> None:
        self.first_NP = first_NP
        self.second_NP = second_NP

    @classmethod
    def fresh(cls, flat_NP: Tensor) -> AdamMoments:
        """Return those of parameters that no step was taken on."""
        return cls(torch.zeros_like(flat_NP), torch.zeros_like(flat_NP))

    @torch.no_grad()
    def step(self, flat_NP: Tensor, gradient_NP: Tensor, numbers_KN: Tensor) -> None:
        """Update the parameters in place by one row of an `AdamTable`."""
        numbers = numbers_KN.unsqueeze(-1)
        self.first_NP.mul_(numbers[_KEEP_FIRST]).add_(gradient_NP * numbers[_ADD_FIRST])
        self.second_NP.mul_(numbers[_KEEP_SECOND]).add_(gradient_NP.square() * numbers[_ADD_SECOND])
        divisor = self.second_NP.sqrt().mul_(numbers[_ROOT_SCALE]).add_(EPSILON)
        flat_NP.mul_(numbers[_DECAY]).sub_(self.first_NP.div(divisor).mul_(numbers[_STEP_SIZE]))


def adam_table(
    rates_SN: NDArray[np.float64],
    steps_SN: NDArray[np.int64],
    *,
    active_SN: NDArray[np.bool_],
    betas: tuple[float, float],
    decay: Sequence[float] | float,
    device: torch.device,
) -> AdamTable:
    """Return the table of an epoch.

    Args:
        rates_SN: Learning rate at each step.
        steps_SN: How many steps the member's optimiser has taken with this one, from 1.
        active_SN: Where False the member takes no step: parameters, moments and count stay as they are.
        betas: Decay of the moments.
        decay: Decoupled weight decay (Loshchilov and Hutter, 2019), for all members or for each.
        device: Where the parameters lie.
    """
    first, second = betas
    age = np.maximum(steps_SN, 1).astype(np.float64)
    values = np.empty((len(rates_SN), 7, rates_SN.shape[1]))
    values[:, _KEEP_FIRST] = np.where(active_SN, first, 1.0)
    values[:, _ADD_FIRST] = np.where(active_SN, 1.0 - first, 0.0)
    values[:, _KEEP_SECOND] = np.where(active_SN, second, 1.0)
    values[:, _ADD_SECOND] = np.where(active_SN, 1.0 - second, 0.0)
    values[:, _STEP_SIZE] = np.where(active_SN, rates_SN / (1.0 - first**age), 0.0)
    values[:, _ROOT_SCALE] = 1.0 / np.sqrt(1.0 - second**age)
    values[:, _DECAY] = np.where(active_SN, 1.0 - rates_SN * np.asarray(decay), 1.0)
    return AdamTable(torch.from_numpy(values).to(device, torch.float32))
