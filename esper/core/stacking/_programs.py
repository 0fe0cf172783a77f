"""From a module to a program that computes it for all members of a stack at once.

A module is taken apart along the containers whose forward is known; what is at the leaves is computed by a batched
operation of its own where there is one, and by `torch.func.vmap` otherwise. Inputs are [N, B, ...]: member, sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from esper.core.errors import UsageError
from esper.core.kernel import Kernel
from esper.core.kernel._modules._features import Concat, Highway, Modulate, Product, Residual, Sum

# Legend: x_NB holds a batch of B samples for each of N members, any shape behind.

Parameters = Mapping[str, Tensor]


class Tap(Protocol):
    """What looks into a forward at some modules."""

    @property
    def modules(self) -> frozenset[str]:
        """The modules that are looked at, by name."""

    def at(self, module: str, source_NB: Tensor, output_NB: Tensor) -> Tensor:
        """Return what the module gives, in place of `output_NB`."""


_Leaf = Callable[[Parameters, Tensor], Tensor]
_Join = Callable[[Sequence["Program"], Parameters, Tensor, Tap | None], Tensor]


@dataclass(frozen=True)
class Program:
    """The forward of one module: a leaf, or its children joined."""

    name: str
    leaf: _Leaf | None = None
    join: _Join | None = None
    children: tuple[Program, ...] = ()

    def run(self, parameters: Parameters, x_NB: Tensor, tap: Tap | None = None) -> Tensor:
        """Return the module's output for every member; `parameters` are [N, *shape] by their names in the module."""
        if self.leaf is not None:
            output = self.leaf(parameters, x_NB)
        else:
            assert self.join is not None, "what is no leaf joins its children"
            output = self.join(self.children, parameters, x_NB, tap)
        if tap is not None and self.name in tap.modules:
            return tap.at(self.name, x_NB, output)
        return output

    def modules(self) -> list[str]:
        """Return the names of all parts, this one first: what a tap can look at."""
        return [self.name, *(name for child in self.children for name in child.modules())]


#: Computed the same for any number of leading dimensions.
_ELEMENTWISE: Final = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Identity,
    nn.LeakyReLU,
    nn.Mish,
    nn.ReLU,
    nn.ReLU6,
    nn.SELU,
    nn.Sigmoid,
    nn.SiLU,
    nn.Softplus,
    nn.Tanh,
)
_RANDOM: Final = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.RReLU)


def program_of(module: nn.Module, *, what: str, name: str = "") -> Program:
    """Return the program of `module`; `what` says whose it is, for errors.

    Raises:
        UsageError: a part keeps buffers or draws random numbers: a stack cannot give each member its own.
    """
    for path, part in module.named_modules(prefix=name):
        problem = _problem(part)
        if problem:
            raise UsageError(
                f"{what} cannot be stacked",
                cause=f"its module {path or type(part).__name__!r} {problem}",
                next_step="Train such runs one at a time",
            )
    return _program(module, name)


def _problem(part: nn.Module) -> str:
    if any(True for _ in part.buffers(recurse=False)):
        return f"is a {type(part).__name__}, which keeps buffers"
    if isinstance(part, _RANDOM) and getattr(part, "p", 1.0) > 0:
        return f"is a {type(part).__name__}, which draws random numbers"
    if part._forward_hooks or part._forward_pre_hooks:  # noqa: SLF001 - torch lists them nowhere else
        return "has hooks, which a stack does not run"
    return ""


def _program(module: nn.Module, name: str) -> Program:
    join = _join_of(module)
    if join is None:
        return Program(name, leaf=_leaf_of(module, name))
    children = module.named_children()
    return Program(name, join=join, children=tuple(_program(child, _below(name, key)) for key, child in children))


def _below(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _join_of(module: nn.Module) -> _Join | None:
    if isinstance(module, Kernel):
        return _in_turn if not module._channels_first else None  # noqa: SLF001 - the kernel's own layout
    return _JOINS.get(type(module))


def _in_turn(children: Sequence[Program], parameters: Parameters, x_NB: Tensor, tap: Tap | None) -> Tensor:
    for child in children:
        x_NB = child.run(parameters, x_NB, tap)
    return x_NB


def _all(children: Sequence[Program], parameters: Parameters, x_NB: Tensor, tap: Tap | None) -> list[Tensor]:
    return [child.run(parameters, x_NB, tap) for child in children]


def _residual(children: Sequence[Program], parameters: Parameters, x_NB: Tensor, tap: Tap | None) -> Tensor:
    return x_NB + children[0].run(parameters, x_NB, tap)


def _sum(children: Sequence[Program], parameters: Parameters, x_NB: Tensor, tap: Tap | None) -> Tensor:
    first, *others = _all(children, parameters, x_NB, tap)
    for other in others:
        first = first + other
    return first


def _product(children: Sequence[Program], parameters: Parameters, x_NB: Tensor, tap: Tap | None) -> Tensor:
    first, second = _all(children, parameters, x_NB, tap)
    return first * second


def _concat(children: Sequence[Program], parameters: Parameters, x_NB: Tensor, tap: Tap | None) -> Tensor:
    return torch.cat(_all(children, parameters, x_NB, tap), dim=-1)


def _highway(children: Sequence[Program], parameters: Parameters, x_NB: Tensor, tap: Tap | None) -> Tensor:
    carry, other = _all(children, parameters, x_NB, tap)
    return carry * other + (1.0 - carry) * x_NB


def _modulate(children: Sequence[Program], parameters: Parameters, x_NB: Tensor, tap: Tap | None) -> Tensor:
    return x_NB * children[0].run(parameters, x_NB, tap)


#: Containers by their exact type: a subclass may compute anything.
_JOINS: Final[Mapping[type[nn.Module], _Join]] = {
    nn.Sequential: _in_turn,
    Residual: _residual,
    Sum: _sum,
    Product: _product,
    Concat: _concat,
    Highway: _highway,
    Modulate: _modulate,
}


def _leaf_of(module: nn.Module, name: str) -> _Leaf:
    if type(module) in _ELEMENTWISE:
        return lambda _parameters, x_NB: module(x_NB)
    if type(module) is nn.Linear:
        return _linear(name, biased=module.bias is not None)
    if type(module) is nn.LayerNorm:
        return _layer_norm(module, name)
    if type(module) is nn.Flatten and module.start_dim == 1 and module.end_dim == -1:
        return lambda _parameters, x_NB: x_NB.flatten(2)
    return _mapped(module, name)


def _linear(name: str, *, biased: bool) -> _Leaf:
    weight_name, bias_name = _below(name, "weight"), _below(name, "bias")

    def run(parameters: Parameters, x_NB: Tensor) -> Tensor:
        weight_NIO = parameters[weight_name].mT
        x_NRI = x_NB.flatten(1, -2) if x_NB.dim() > 3 else x_NB
        if biased:
            output = torch.baddbmm(parameters[bias_name].unsqueeze(1), x_NRI, weight_NIO)
        else:
            output = torch.bmm(x_NRI, weight_NIO)
        return output.view(*x_NB.shape[:-1], -1) if x_NB.dim() > 3 else output

    return run


def _layer_norm(module: nn.LayerNorm, name: str) -> _Leaf:
    weight_name, bias_name = _below(name, "weight"), _below(name, "bias")
    shape, epsilon = list(module.normalized_shape), module.eps
    has_weight, has_bias = module.weight is not None, module.bias is not None

    def spread(parameter: Tensor, x_NB: Tensor) -> Tensor:
        return parameter.view(len(parameter), *(1,) * (x_NB.dim() - 1 - len(shape)), *shape)

    def run(parameters: Parameters, x_NB: Tensor) -> Tensor:
        output = F.layer_norm(x_NB, shape, eps=epsilon)
        if has_weight:
            output = output * spread(parameters[weight_name], x_NB)
        return output + spread(parameters[bias_name], x_NB) if has_bias else output

    return run


def _mapped(module: nn.Module, name: str) -> _Leaf:
    """Return the module's own forward, mapped over members."""
    own = [key for key, _ in module.named_parameters()]
    names = [_below(name, key) for key in own]

    def one(values: tuple[Tensor, ...], x_B: Tensor) -> Any:  # noqa: ANN401 - as torch types a call
        return functional_call(module, dict(zip(own, values, strict=True)), (x_B,))

    over_members = vmap(one)

    def run(parameters: Parameters, x_NB: Tensor) -> Tensor:
        output: Tensor = over_members(tuple(parameters[each] for each in names), x_NB)
        return output

    return run
