"""What a builder is: from a checked node and the modules of its children to the module of the node."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from esper.core.kernel._word import NodePlan

#: Parameters and buffers of the artifact are made on the meta device: nothing is allocated, nothing drawn.
#: Constants that follow from the plan (masks, pooling weights) are buffers that are not persistent, made for real.
Builder = Callable[[NodePlan, Sequence[nn.Module], torch.dtype], nn.Module]


def empty(node: NodePlan, name: str, dtype: torch.dtype) -> nn.Parameter:
    """Return the parameter that the node's plan names, with a shape but no storage."""
    return nn.Parameter(torch.empty(node.tensors[name].shape, dtype=dtype, device="meta"))


class Worded(nn.Module):
    """A module with exactly the tensors that its word plans, as parameters and buffers of the same names."""

    def __init__(self, node: NodePlan, children: Sequence[nn.Module], dtype: torch.dtype) -> None:
        super().__init__()
        self.node = node
        for name, tensor in node.tensors.items():
            if tensor.trained:
                self.register_parameter(name, empty(node, name, dtype))
            else:
                self.register_buffer(name, torch.empty(tensor.shape, dtype=dtype, device="meta"))
        for index, child in enumerate(children):
            self.add_module(str(index), child)
