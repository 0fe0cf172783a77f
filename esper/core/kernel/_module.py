"""From a checked plan to a torch module: one builder per word, nothing else can be built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from esper.core.errors import IntegrityError, UsageError
from esper.core.kernel._modules import BUILDERS
from esper.core.kernel._request import CHANNELS_FIRST
from esper.core.kernel._spec import KernelPlan, plan_spec
from esper.core.kernel._word import NodePlan

TORCH_DTYPES: Final[Mapping[str, torch.dtype]] = {"float32": torch.float32, "float64": torch.float64}

# Legend: x_B is a batch of B samples as the slot has them.


class Kernel(nn.Module):
    """A graftable module: a body, then an end that yields exactly zero until it has been trained.

    `plan` says what it is made of. Input is (B, *in_shape), output (B, *out_shape), in the dtype of the
    parameters. The channels of a map are moved behind its positions for the body and back again after the end.
    """

    def __init__(self, plan: KernelPlan, body: nn.Module, end: nn.Module) -> None:
        super().__init__()
        self.plan = plan
        self.body = body
        self.end = end
        self._channels_first = plan.layout in CHANNELS_FIRST

    def forward(self, x_B: Tensor) -> Tensor:
        # Without this check a feature-wise kernel would broadcast over a wrong shape instead of failing.
        if tuple(x_B.shape[1:]) != self.plan.in_shape:
            raise UsageError(
                f"kernel cannot take an input of shape {list(x_B.shape)}",
                cause=f"one sample of this kernel has shape {list(self.plan.in_shape)}",
                next_step="ask for a kernel of the slot's shape",
            )
        if not self._channels_first:
            out: Tensor = self.end(self.body(x_B))
            return out
        inner: Tensor = self.end(self.body(x_B.movedim(1, -1)))
        return inner.movedim(-1, 1)


def build_module(spec: Mapping[str, object], *, quarantine: bool = False) -> Kernel:
    """Return the module that `spec` describes, every parameter zero; `init_module` gives first values.

    Touches no random number generator. A spec with a word of the hazards is built only where the caller says
    that it is for `quarantine`: such a module may hang, leak or blow up once it trains.

    Raises:
        IntegrityError: the spec is refused (`plan_spec`), or holds a hazard; nothing was built.
    """
    kernel = assemble(plan_spec(spec), quarantine=quarantine)
    zeros = {name: torch.zeros(tuple(tensor.shape), dtype=tensor.dtype) for name, tensor in kernel.state_dict().items()}
    # Assigned, not `to_empty`: that asks a meta tensor for its like, for which torch imports sympy, in two seconds.
    kernel.load_state_dict(zeros, strict=True, assign=True)
    return kernel


def init_module(module: Kernel, generator: torch.Generator) -> None:
    """Give every tensor its first values, in name order, drawing from `generator` (a CPU one) alone.

    The end becomes exactly zero, so that the module's output is zero until its first step.
    """
    state = module.state_dict()
    with torch.no_grad():
        for name, plan in sorted(module.plan.tensors.items()):
            if plan.bound is None:
                state[name].fill_(plan.fill)
            else:
                state[name].uniform_(-plan.bound, plan.bound, generator=generator)


def init_from_scratch(module: Kernel, generator: torch.Generator) -> None:
    """Give every tensor the first values of a network that is trained from nothing, drawing from `generator` alone.

    As `init_module`, but for the end, which is not zero: factors are one, a projection's map is drawn evenly from
    +-1/sqrt(features) as torch draws a linear layer's, its bias zero. No graft begins so: it would change its host.
    """
    init_module(module, generator)
    state = module.state_dict()
    with torch.no_grad():
        for name in sorted(name for name in module.plan.tensors if name.startswith("end.")):
            tensor = state[name]
            if tensor.dim() > 1:
                bound = 1.0 / math.sqrt(tensor.shape[-1])
                tensor.uniform_(-bound, bound, generator=generator)
            else:
                tensor.fill_(0.0 if name == "end.bias" else 1.0)


def assemble(plan: KernelPlan, *, quarantine: bool = False) -> Kernel:
    """Return the planned module with tensors that have shapes but no storage.

    Raises:
        IntegrityError: the plan holds a hazard, and it is not for quarantine.
    """
    if plan.hazards and not quarantine:
        raise IntegrityError(
            "kernel is refused outside quarantine",
            cause=f"it is made of {', '.join(plan.hazards)}",
            next_step="run it in quarantine only",
        )
    dtype = TORCH_DTYPES[plan.dtype]
    kernel = Kernel(plan, _assemble_node(plan.body, dtype), _assemble_node(plan.end, dtype))
    shapes = {name: tuple(tensor.shape) for name, tensor in kernel.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in plan.tensors.items()}, "a builder strays from its plan"
    return kernel


def _assemble_node(node: NodePlan, dtype: torch.dtype) -> nn.Module:
    return BUILDERS[node.op](node, [_assemble_node(child, dtype) for child in node.children], dtype)
