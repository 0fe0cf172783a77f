"""Adam over stacked parameters: elementwise, so that each member's update is its own (Kingma and Ba, 2015).

Everything that depends on the step alone is worked out for a whole epoch ahead, in double precision, and lies in a
table: what remains is the same few operations at every step, whatever each member's rate and age. With the moments m
and v and the number of steps t, the update rate / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + epsilon) is written as
scale * m / (sqrt(v) + epsilon'), which takes the fewest passes over the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Legend: S steps of an epoch, N members, P parameters of one member.

#: torch.optim.Adam's own, which no task or request sets otherwise.
EPSILON: Final = 1e-8
#: Rows of a table: what a step multiplies and adds with.
_FIRST, _SECOND, _SCALE, _EPSILON, _DECAY = range(5)
#: How many numbers a member's step takes.
ADAM_NUMBERS: Final = 5


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
    def step(self, flat_NP: Tensor, gradient_NP: Tensor, numbers_KN: Tensor, *, decays: bool = True) -> None:
        """Update the parameters in place by one row of `adam_table`; `decays` is False where no row decays."""
        numbers = numbers_KN.unsqueeze(-1)
        self.first_NP.lerp_(gradient_NP, numbers[_FIRST])
        self.second_NP.lerp_(gradient_NP.square(), numbers[_SECOND])
        divisor = self.second_NP.sqrt().add_(numbers[_EPSILON])
        if decays:
            flat_NP.mul_(numbers[_DECAY])
        flat_NP.addcdiv_(self.first_NP * numbers[_SCALE], divisor, value=-1.0)


def adam_table(
    rates_SN: NDArray[np.float64],
    steps_SN: NDArray[np.int64],
    *,
    active_SN: NDArray[np.bool_],
    betas: tuple[float, float],
    decay: Sequence[float] | float,
) -> Tensor:
    """Return the numbers of an epoch's steps, [S, ADAM_NUMBERS, N], float32 on the CPU.

    Args:
        rates_SN: Learning rate at each step.
        steps_SN: How many steps the member's optimiser has taken with this one, from 1.
        active_SN: Where False the member takes no step: parameters, moments and count stay as they are.
        betas: Decay of the moments.
        decay: Decoupled weight decay (Loshchilov and Hutter, 2019), for all members or for each.
    """
    first, second = betas
    age = np.maximum(steps_SN, 1).astype(np.float64)
    root = np.sqrt(1.0 - second**age)
    values = np.empty((len(rates_SN), ADAM_NUMBERS, rates_SN.shape[1]))
    values[:, _FIRST] = np.where(active_SN, 1.0 - first, 0.0)
    values[:, _SECOND] = np.where(active_SN, 1.0 - second, 0.0)
    values[:, _SCALE] = np.where(active_SN, rates_SN / (1.0 - first**age) * root, 0.0)
    values[:, _EPSILON] = EPSILON * root
    values[:, _DECAY] = np.where(active_SN, 1.0 - rates_SN * np.asarray(decay), 1.0)
    return torch.from_numpy(values).float()
