"""Folding: a fossilised seed that is a linear map becomes a part of the weights beside or before it.

Beside a linear layer, W x + b + (A x + c) is the layer (W + A) x + (b + c); after it, h + (A h + c) with h = W x + b
is (I + A) W x + (I + A) b + c. Linear is what is built of nothing but linear operations, at each position for itself,
in training mode as well: a dropout or a batch norm is none. That is read from the operations that torch runs, so that
a map that only looks linear on a few inputs is not taken for one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from esper.core.apart import forked_rng
from esper.core.inputs import Inputs, Targets
from esper.kasmina.grafting._passes import HostPasses
from esper.kasmina.grafting._seed import GraftedSeed, PassFocus
from esper.kasmina.grafting._slots import SlotSpec
from esper.kasmina.grafting._sockets import Socket, hook_ids
from esper.leyline import messages as ly

#: Largest absolute difference of the host's outputs on the probe, before and after.
TOLERANCE: Final = 1e-5

_ATEN: Final = torch.ops.aten
#: Operations that only give the same numbers another shape, as long as the last dimension stays.
_SHAPES: Final = frozenset(
    {_ATEN.view, _ATEN._unsafe_view, _ATEN.reshape, _ATEN.expand, _ATEN.alias, _ATEN.detach, _ATEN.clone}  # noqa: SLF001 - torch's names
)
_PRODUCTS: Final = {_ATEN.mm: 0, _ATEN.addmm: 1, _ATEN.linear: 0}
_SCALES: Final = frozenset({_ATEN.mul, _ATEN.mul_, _ATEN.div, _ATEN.div_})
_SUMS: Final = frozenset({_ATEN.add, _ATEN.add_, _ATEN.sub, _ATEN.sub_})


@dataclass(frozen=True)
class Fold:
    """New values of a linear layer that does its seed's work as well; `names` are those of its tensors in the host."""

    layer: nn.Linear
    names: tuple[str, ...]
    weight: Tensor
    bias: Tensor | None
    #: Whether the gradient of the layer's tensors is the same as before, so that its optimiser's state still holds.
    moments_hold: bool

    def values(self) -> dict[str, Tensor]:
        """Return the new values by their names in the host."""
        tensors = (self.weight,) if self.bias is None else (self.weight, self.bias)
        return dict(zip(self.names, tensors, strict=True))

    def targets(self) -> list[nn.Parameter]:
        """Return the layer's parameters, in the order of `names`."""
        return list(self.layer.parameters(recurse=False))


def fold_of(model: nn.Module, spec: SlotSpec, seed: GraftedSeed, *, hook_id: int) -> Fold | str:
    """Return how `seed` can be folded into its host, or why it cannot; nothing is changed.

    `hook_id` is that of the seed's own hook; a layer with any other hook would show that hook something else.
    """
    layer = _layer(model.get_submodule(spec.module), spec, hook_id)
    if isinstance(layer, str):
        return layer
    names = _names(model, layer)
    if isinstance(names, str):
        return names
    if spec.layout not in ("vector", "sequence"):
        return "layout_not_linear"
    found = _affine(seed.body, spec)
    if found is None:
        return "seed_not_linear"
    return _folded(layer, names, found, spec, instead=seed.mode == ly.BLEND_MODE_CONVEX)


def _layer(module: nn.Module, spec: SlotSpec, hook_id: int) -> nn.Linear | str:
    """Return the linear layer whose output is the slot module's; only the seed may have a hook on the way."""
    allowed = {hook_id}
    while True:
        if _foreign_hooks(module) - allowed or module._forward_pre_hooks or module._backward_hooks:  # noqa: SLF001 - torch lists them nowhere else
            return "layer_hooked"
        if type(module) is nn.Linear:
            return module if all(each.requires_grad for each in module.parameters()) else "layer_frozen"
        if spec.placement != "residual" or type(module) is not nn.Sequential or not len(module):
            return "layer_not_linear"
        module, allowed = module[-1], set()


def _foreign_hooks(module: nn.Module) -> set[int]:
    """Return what names every hook and every seed that is asked after the module's forward, sockets left out."""
    sockets = {key for key, hook in module._forward_hooks.items() if isinstance(hook, Socket)}  # noqa: SLF001 - as above
    return hook_ids(module) - sockets


def _names(model: nn.Module, layer: nn.Linear) -> tuple[str, ...] | str:
    mine = {id(each) for each in layer.parameters(recurse=False)}
    names = tuple(name for name, each in model.named_parameters(remove_duplicate=False) if id(each) in mine)
    return names if len(names) == len(mine) else "layer_shared"


def _folded(
    layer: nn.Linear, names: tuple[str, ...], found: tuple[Tensor, Tensor], spec: SlotSpec, *, instead: bool
) -> Fold | str:
    matrix_OI, offset_O = found
    weight = layer.weight.detach().double()
    bias = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    held: Tensor | None = layer.bias  # torch says that a layer always has one
    if held is not None:
        bias = held.detach().double()
    elif bool(offset_O.any()):
        return "bias_missing"
    kept = 0.0 if instead else 1.0
    if spec.placement == "branch":
        weight, bias = kept * weight + matrix_OI, kept * bias + offset_O
    else:
        after = kept * torch.eye(len(weight), dtype=torch.float64, device=weight.device) + matrix_OI
        weight, bias = after @ weight, after @ bias + offset_O
    return Fold(
        layer,
        names,
        weight.to(layer.weight.dtype),
        None if held is None else bias.to(held.dtype),
        moments_hold=spec.placement == "branch" and not instead,
    )


def fold_error(
    passes: HostPasses, focus: PassFocus, seed: GraftedSeed, fold: Fold, batches: Sequence[tuple[Inputs, Targets]]
) -> float:
    """Return the largest absolute difference that folding makes to the host's outputs on `batches`.

    Infinity where one is not finite, or where the host returns something else than one tensor.
    """
    largest = 0.0
    for inputs, _ in batches:
        with torch.no_grad(), passes.quiet(seed=0):
            as_it_is = passes.forward(inputs)
        with torch.no_grad(), passes.quiet(seed=0), focus.on(muted=seed):
            folded = passes.forward(inputs, replaced=fold.values())
        if not isinstance(as_it_is, Tensor) or not isinstance(folded, Tensor):
            return float("inf")
        difference = (folded - as_it_is).abs().max()
        largest = max(largest, float(difference)) if torch.isfinite(difference) else float("inf")
    return largest


def _affine(body: nn.Module, spec: SlotSpec) -> tuple[Tensor, Tensor] | None:
    """Return (A, c) of body(x) = A x + c at every position, in double precision; None where it is no such map."""
    features = spec.in_shape[-1]
    copied = copy.deepcopy(body).double().train()
    device = next((each.device for each in copied.parameters()), torch.device("cpu"))
    ones = [1] * (len(spec.in_shape) - 1)
    try:
        with torch.no_grad(), forked_rng([device] if device.type == "cuda" else []):
            sample = torch.zeros(2, *spec.in_shape, dtype=torch.float64, device=device)
            if not _is_linear(copied, sample):
                return None
            nothing = torch.zeros(1, *ones, features, dtype=torch.float64, device=device)
            offset = copied(nothing).reshape(-1)
            basis = torch.eye(features, dtype=torch.float64, device=device).reshape(features, *ones, features)
            rows = copied(basis).reshape(features, -1) - offset
    except (RuntimeError, ValueError):  # a body that reads other shapes only is not a map of single positions
        return None
    return rows.T.contiguous(), offset


def _is_linear(body: Callable[[Tensor], Any], sample: Tensor) -> bool:
    trace = _LinearTrace(sample)
    with trace:
        output = body(sample)
    return trace.linear and trace.follows(output)


class _LinearTrace(TorchDispatchMode):  # type: ignore[no-untyped-call]  # unannotated in torch
    """Follows what becomes of one tensor, and whether each step is linear in it at every position for itself."""

    def __init__(self, source: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # unannotated in torch
        self.linear = True
        #: Kept alive, so that no id is used again.
        self._followed: dict[int, Tensor] = {id(source): source}

    def follows(self, value: object) -> bool:
        """Whether `value` is a tensor that depends on the source."""
        return id(value) in self._followed

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - as torch calls it
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - as torch calls it
        """Run the operation and note what it makes of the tensors that are followed."""
        before = [value for value in tree_leaves((args, kwargs or {})) if isinstance(value, Tensor)]
        hits = [value for value in before if self.follows(value)]
        output = func(*args, **(kwargs or {}))
        if hits:
            self.linear = self.linear and isinstance(output, Tensor) and self._keeps(func.overloadpacket, args, output)
            if isinstance(output, Tensor):
                self._followed[id(output)] = output
        return output

    def _keeps(self, packet: object, args: Sequence[Any], output: Tensor) -> bool:
        operands = [value for value in args if isinstance(value, Tensor)]
        if packet in _SHAPES:
            return self.follows(args[0]) and output.shape[-1:] == args[0].shape[-1:]
        if packet in _PRODUCTS:
            place = _PRODUCTS[packet]
            return self.follows(args[place]) and sum(map(self.follows, operands)) == 1
        constants = [value for value in operands if not self.follows(value)]
        if any(value.numel() not in (1, value.shape[-1]) for value in constants if value.dim()):
            return False  # A number of its own at each position.
        if packet in _SCALES:
            return self.follows(args[0]) is not self.follows(args[1]) and (
                packet in (_ATEN.mul, _ATEN.mul_) or self.follows(args[0])
            )
        return packet in _SUMS


def apply_fold(fold: Fold, optimizer: torch.optim.Optimizer | None) -> None:
    """Give the layer its new values, in place; state of the host's optimiser that holds no longer starts afresh."""
    with torch.no_grad():
        for target, value in zip(fold.targets(), fold.values().values(), strict=True):
            target.copy_(value)
    if optimizer is not None and not fold.moments_hold:
        for target in fold.targets():
            optimizer.state.pop(target, None)
