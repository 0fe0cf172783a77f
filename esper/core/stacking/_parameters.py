"""The parameters of all members of a stack, in one buffer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# Legend: N members, P numbers of one member.


class StackedParameters:
    """Parameters of N networks of one shape: `flat_NP` holds a row for each member, `tensors` views of it by name.

    The views, each [N, *shape], are leaves that autograd knows. They share memory with the buffer, so that an
    optimiser updates all of them by one operation on `flat_NP`.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], flat_NP: Tensor) -> None:
        self.shapes = dict(shapes)
        self.flat_NP = flat_NP
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        assert flat_NP.shape[1] == sum(sizes), "the buffer has room for exactly these shapes"
        parts = torch.split(flat_NP, sizes, dim=1)
        self.tensors: dict[str, Tensor] = {
            name: part.detach().view(-1, *shape).requires_grad_()
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    @classmethod
    def of(cls, states: Sequence[Mapping[str, Tensor]], device: torch.device) -> StackedParameters:
        """Return the stack of `states`, which have equal names, shapes and dtypes, bit for bit."""
        shapes = {name: tuple(tensor.shape) for name, tensor in states[0].items()}
        rows = [torch.cat([state[name].detach().reshape(-1) for name in shapes]) for state in states]
        return cls(shapes, torch.stack(rows).to(device))

    def __len__(self) -> int:
        return len(self.flat_NP)

    def leaves(self) -> list[Tensor]:
        """Return the views in order: what a gradient is asked for."""
        return list(self.tensors.values())

    def flat(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return gradients of `leaves()` as one [N, P], in the order of `flat_NP`."""
        return torch.cat([gradient.reshape(len(self), -1) for gradient in gradients], dim=1)

    def views(self, flat_MP: Tensor) -> dict[str, Tensor]:
        """Return a buffer of the same columns ([M, P]: chosen rows, say) by name."""
        parts = torch.split(flat_MP, [math.prod(shape) for shape in self.shapes.values()], dim=1)
        named = zip(self.shapes.items(), parts, strict=True)
        return {name: part.view(len(part), *shape) for (name, shape), part in named}

    def row(self, index: int) -> dict[str, Tensor]:
        """Return one member's parameters by name: detached views, no copies."""
        return {name: tensor.detach()[index] for name, tensor in self.tensors.items()}
