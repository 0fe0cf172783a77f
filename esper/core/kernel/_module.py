"""From a checked plan to a torch module: one builder per word, nothing else can be built."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.core.errors import UsageError
from esper.core.kernel._spec import KernelPlan, NodePlan, plan_spec

TORCH_DTYPES: Final[Mapping[str, torch.dtype]] = {"float32": torch.float32, "float64": torch.float64}

# Legend: x_BF is a batch of B samples, last dimension F features.


class Kernel(nn.Module):
    """A graftable module: a body, then an end that yields exactly zero until it has been trained.

    `plan` says what it is made of. Input is (B, *in_shape), output (B, *out_shape), in the dtype of the
    parameters.
    """

    def __init__(self, plan: KernelPlan, body: nn.Module, end: nn.Module) -> None:
        super().__init__()
        self.plan = plan
        self.body = body
        self.end = end

    def forward(self, x_BF: Tensor) -> Tensor:
        # Without this check a feature-wise kernel would broadcast over a wrong shape instead of failing.
        if tuple(x_BF.shape[1:]) != self.plan.in_shape:
            raise UsageError(
                f"kernel cannot take an input of shape {list(x_BF.shape)}",
                cause=f"one sample of this kernel has shape {list(self.plan.in_shape)}",
                next_step="ask for a kernel of the slot's shape",
            )
        out: Tensor = self.end(self.body(x_BF))
        return out


class Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x_BF: Tensor) -> Tensor:
        return x_BF * self.factor


class Gain(nn.Module):
    """Multiplies each feature by a trained factor (LayerScale, Touvron et al. 2021, begun at zero as ReZero is)."""

    def __init__(self, features: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(features, dtype=dtype, device="meta"))

    def forward(self, x_BF: Tensor) -> Tensor:
        return x_BF * self.weight


class Gate(nn.Linear):
    """The logistic function of a linear map."""

    def forward(self, x_BF: Tensor) -> Tensor:
        return torch.sigmoid(functional.linear(x_BF, self.weight, self.bias))


class Residual(nn.ModuleList):
    """x + child(x) (He et al. 2016)."""

    def forward(self, x_BF: Tensor) -> Tensor:
        out: Tensor = x_BF + self[0](x_BF)
        return out


class Concat(nn.ModuleList):
    """What each child makes of x, side by side (Huang et al. 2017)."""

    def forward(self, x_BF: Tensor) -> Tensor:
        return torch.cat([child(x_BF) for child in self], dim=-1)


class Product(nn.ModuleList):
    """first(x) * second(x): a gated linear unit (Shazeer 2020) when the first bends and the second does not."""

    def forward(self, x_BF: Tensor) -> Tensor:
        out: Tensor = self[0](x_BF) * self[1](x_BF)
        return out


class Highway(nn.ModuleList):
    """With t = first(x): t * second(x) + (1 - t) * x (Srivastava et al. 2015)."""

    def forward(self, x_BF: Tensor) -> Tensor:
        carry: Tensor = self[0](x_BF)
        out: Tensor = carry * self[1](x_BF) + (1.0 - carry) * x_BF
        return out


def build_module(spec: Mapping[str, object]) -> Kernel:
    """Return the module that `spec` describes, every parameter zero; `init_module` gives first values.

    Touches no random number generator.

    Raises:
        IntegrityError: the spec is refused (`plan_spec`); nothing was built.
    """
    kernel = assemble(plan_spec(spec))
    zeros = {name: torch.zeros(tuple(tensor.shape), dtype=tensor.dtype) for name, tensor in kernel.state_dict().items()}
    # Assigned, not `to_empty`: that asks a meta tensor for its like, for which torch imports sympy, in two seconds.
    kernel.load_state_dict(zeros, strict=True, assign=True)
    return kernel


def init_module(module: Kernel, generator: torch.Generator) -> None:
    """Give every parameter its first values, in name order, drawing from `generator` (a CPU one) alone.

    The end becomes exactly zero, so that the module's output is zero until its first step.
    """
    tensors = module.plan.tensors
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            plan = tensors[name]
            if plan.bound is None:
                parameter.fill_(plan.fill)
            else:
                parameter.uniform_(-plan.bound, plan.bound, generator=generator)


def assemble(plan: KernelPlan) -> Kernel:
    """Return the planned module with parameters that have shapes but no storage."""
    dtype = TORCH_DTYPES[plan.dtype]
    kernel = Kernel(plan, _assemble_node(plan.body, dtype), _assemble_node(plan.end, dtype))
    shapes = {name: tuple(parameter.shape) for name, parameter in kernel.named_parameters()}
    assert shapes == {name: tensor.shape for name, tensor in plan.tensors.items()}, "a builder strays from its plan"
    return kernel


def _assemble_node(node: NodePlan, dtype: torch.dtype) -> nn.Module:
    return _BUILDERS[node.op](node, [_assemble_node(child, dtype) for child in node.children], dtype)


def _linear(node: NodePlan, dtype: torch.dtype, *, bias: bool, kind: Callable[..., nn.Module] = nn.Linear) -> nn.Module:
    # On the meta device nothing is allocated, and the layer's own initialisation draws no random number.
    return kind(int(node.attributes["in"]), int(node.attributes["out"]), bias=bias, dtype=dtype, device="meta")


def _layer_norm(node: NodePlan, dtype: torch.dtype) -> nn.Module:
    features, epsilon = int(node.attributes["features"]), node.attributes["epsilon"]
    return nn.LayerNorm(features, eps=epsilon, dtype=dtype, device="meta")


_Builder = Callable[[NodePlan, Iterable[nn.Module], torch.dtype], nn.Module]

_BUILDERS: Final[Mapping[str, _Builder]] = {
    "identity": lambda _node, _children, _dtype: nn.Identity(),
    "relu": lambda _node, _children, _dtype: nn.ReLU(),
    "gelu": lambda _node, _children, _dtype: nn.GELU(),
    "silu": lambda _node, _children, _dtype: nn.SiLU(),
    "scale": lambda node, _children, _dtype: Scale(node.attributes["factor"]),
    "linear": lambda node, _children, dtype: _linear(node, dtype, bias=bool(node.attributes["bias"])),
    "gate": lambda node, _children, dtype: _linear(node, dtype, bias=True, kind=Gate),
    "layer_norm": lambda node, _children, dtype: _layer_norm(node, dtype),
    "sequential": lambda _node, children, _dtype: nn.Sequential(*children),
    "residual": lambda _node, children, _dtype: Residual(children),
    "concat": lambda _node, children, _dtype: Concat(children),
    "product": lambda _node, children, _dtype: Product(children),
    "highway": lambda _node, children, _dtype: Highway(children),
    "gain": lambda node, _children, dtype: Gain(int(node.attributes["features"]), dtype),
    "projection": lambda node, _children, dtype: _linear(node, dtype, bias=True),
}
