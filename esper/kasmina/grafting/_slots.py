"""Slots: the places of a host where a seed may be grafted, found by one traced forward.

A slot spans a named module. A seed placed as "branch" reads the module's input, one placed as "residual"
its output; both add to its output.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast, get_args

import torch
from torch import Tensor, nn

from esper.core.errors import UsageError
from esper.core.inputs import Inputs, Output, main_of, source_of
from esper.core.kernel import CHANNELS_FIRST
from esper.kasmina.grafting._passes import HostPasses
from esper.leyline import messages as ly

Placement = Literal["branch", "residual"]
Layout = Literal["vector", "sequence", "map1d", "map2d"]

_PLACEMENTS: Final[tuple[str, ...]] = get_args(Placement)
_PLACEMENT_SEPARATOR: Final = ":"
#: Modules that say of a three-dimensional activation that it is (batch, channels, length).
_MAP1D_MODULES: Final = (
    nn.Conv1d,
    nn.ConvTranspose1d,
    nn.MaxPool1d,
    nn.AvgPool1d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveMaxPool1d,
    nn.BatchNorm1d,
    nn.InstanceNorm1d,
)
#: Modules that only hold other modules: "auto" looks into them instead of spanning them whole.
_CONTAINERS: Final = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.TransformerEncoder, nn.TransformerDecoder)


@dataclass(frozen=True)
class SlotSpec:
    """One slot. Shapes are without the batch dimension; `depth` counts the weight layers that run before it.

    Where the module returns a tuple, a seed adds to the first of it; where it takes no positional argument, a seed
    reads the first tensor among its named ones.

    `in_shape` is what a seed reads and `out_shape` what it must return: equal for "residual". `calls` is how
    often one forward of the host runs the module.
    """

    slot: str
    module: str
    placement: Placement
    layout: Layout
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    depth: int
    calls: int = 1
    dtype: str = "float32"

    def request(self, blueprint_id: str, parameters: Mapping[str, float]) -> ly.KernelRequestSpec:
        """Return the request for a kernel that fits this slot."""
        return ly.KernelRequestSpec(
            blueprint_id=blueprint_id,
            parameters=dict(parameters),
            layout=self.layout,
            in_shape=self.in_shape,
            out_shape=self.out_shape,
            dtype=self.dtype,
        )

    def state(self, seed_id: str) -> ly.SlotState:
        """Return the slot as a state packet shows it, held by `seed_id` ("" when free)."""
        return ly.SlotState(
            slot=self.slot,
            module=self.module,
            placement=self.placement,
            layout=self.layout,
            in_shape=self.in_shape,
            out_shape=self.out_shape,
            seed_id=seed_id,
            layer_depth=self.depth,
        )


@dataclass
class _Trace:
    """What one forward showed of one module."""

    depth: int
    calls: int = 0
    source: Any = None
    output: Any = None
    consistent: bool = True


@dataclass
class _Tracer:
    """Watches every module of a host during one forward."""

    names: Mapping[nn.Module, str]
    traces: dict[str, _Trace] = field(default_factory=dict)
    weight_layers_run: int = 0
    last_weight_layer: str = ""

    def before(self, module: nn.Module, _args: tuple[Any, ...]) -> None:
        """Note how deep the module lies, the first time it is entered."""
        self.traces.setdefault(self.names[module], _Trace(depth=self.weight_layers_run))

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Output) -> None:
        """Note what the module read and returned."""
        name = self.names[module]
        trace, source, output = self.traces[name], source_of(args, kwargs), main_of(output)
        if trace.calls and (_shape(trace.source) != _shape(source) or _shape(trace.output) != _shape(output)):
            trace.consistent = False
        trace.calls += 1
        trace.source, trace.output = source, output
        if _owns_weights(module):
            self.weight_layers_run += 1
            self.last_weight_layer = name


def discover_slots(
    model: nn.Module,
    sample_inputs: Inputs,
    names: Sequence[str] | Literal["auto"] = "auto",
) -> list[SlotSpec]:
    """Return the slots of `model`, in the order in which its forward reaches them.

    `names` are module names as `named_modules` gives them, each with an optional ":branch" or ":residual";
    without one the slot is a branch where input and output have the same layout and positions, and residual otherwise.
    "auto" picks every outermost block that holds weights (it looks into Sequential, ModuleList and the like)
    and can take a branch, except the one with the last weight layer, which is the head.

    `sample_inputs`: one batch as the model takes it, [batch, ...], or several tensors by position or by name. The
    model is left as it was: the forward runs without gradients, in eval mode, on copied buffers and a forked random
    stream.

    Raises:
        UsageError: a name is unknown, its module never runs, or it has no tensors that a seed could read
            and add to; or "auto" finds nothing.
    """
    tracer = _trace(model, sample_inputs)
    if names == "auto":
        specs = [_spec(model, tracer, name, name, "branch") for name in _pick(model, tracer)]
        if not specs:
            raise UsageError(
                f"no module of {type(model).__name__} offers itself as a slot",
                cause="none besides the head holds weights and maps a float tensor to one of the same layout",
                next_step="name the modules: slots=['encoder.0', ...]",
            )
    else:
        specs = [_named(model, tracer, name) for name in names]
    repeated = {spec.slot for spec in specs if sum(other.slot == spec.slot for other in specs) > 1}
    if repeated:
        raise UsageError(f"the slot {min(repeated)!r} is named twice", next_step="name each slot once")
    return sorted(specs, key=lambda spec: (spec.depth, spec.slot))


def _trace(model: nn.Module, sample_inputs: Inputs) -> _Tracer:
    names = {module: name for name, module in model.named_modules()}
    tracer = _Tracer(names)
    handles = [module.register_forward_pre_hook(tracer.before) for module in names]
    handles += [module.register_forward_hook(tracer.after, with_kwargs=True) for module in names]
    passes = HostPasses(model)
    try:
        with torch.no_grad(), passes.quiet(seed=0):
            passes.forward(sample_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return tracer


def _named(model: nn.Module, tracer: _Tracer, slot: str) -> SlotSpec:
    module_name, _, wish = slot.partition(_PLACEMENT_SEPARATOR)
    if not module_name or module_name not in tracer.names.values():
        raise UsageError(
            f"no module is called {module_name!r}",
            cause=f"{type(model).__name__} has {_listed(name for name in tracer.names.values() if name)}",
            next_step="name modules as named_modules() does",
        )
    if wish and wish not in _PLACEMENTS:
        raise UsageError(f"the slot {slot!r} asks for placement {wish!r}", next_step="write :branch or :residual")
    trace = tracer.traces.get(module_name)
    module = model.get_submodule(module_name)
    placement = cast("Placement", wish) if wish else "residual" if _problem(module, trace, "branch") else "branch"
    problem = _problem(module, trace, placement)
    if problem:
        raise UsageError(
            f"the module {module_name!r} cannot be a {placement} slot",
            cause=problem,
            next_step='choose another module, or slots="auto"',
        )
    return _spec(model, tracer, slot, module_name, placement)


def _problem(module: nn.Module, trace: _Trace | None, placement: Placement) -> str:
    """Return why the module of this trace cannot be such a slot; nothing when it can."""
    if trace is None or not trace.calls:
        return "the forward never runs it"
    if not trace.consistent:
        return "it runs more than once, on different shapes"
    output, source = trace.output, trace.source
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return f"it returns {_kind(output)}, not one float tensor"
    if output.dim() not in _LAYOUT_DIMS:
        return f"its output has {output.dim()} dimensions, batch included; 2 to 4 are known"
    if placement == "residual":
        return ""
    if not isinstance(source, Tensor) or not source.is_floating_point():
        return f"the first that it reads is {_kind(source)}, not a float tensor"
    if source.dim() != output.dim() or source.shape[0] != output.shape[0] or source.dtype != output.dtype:
        return f"it maps {_shape(source)} to {_shape(output)}, which are of different layout or dtype"
    # A strided convolution, say: a seed beside it would have to know how positions become others.
    if _positions(module, source) != _positions(module, output):
        return f"it maps {_shape(source)} to {_shape(output)}, and a seed keeps positions"
    return ""


_LAYOUT_DIMS: Final = frozenset({2, 3, 4})


def _layout(module: nn.Module, dims: int) -> Layout:
    if dims == 2:
        return "vector"
    if dims == 4:
        return "map2d"
    return "map1d" if any(isinstance(part, _MAP1D_MODULES) for part in module.modules()) else "sequence"


def _positions(module: nn.Module, tensor: Tensor) -> tuple[int, ...]:
    sizes = tuple(tensor.shape[1:])
    return sizes[1:] if _layout(module, tensor.dim()) in CHANNELS_FIRST else sizes[:-1]


def _spec(model: nn.Module, tracer: _Tracer, slot: str, module_name: str, placement: Placement) -> SlotSpec:
    trace = tracer.traces[module_name]
    source = trace.source if placement == "branch" else trace.output
    return SlotSpec(
        slot=slot,
        module=module_name,
        placement=placement,
        layout=_layout(model.get_submodule(module_name), trace.output.dim()),
        in_shape=tuple(source.shape[1:]),
        out_shape=tuple(trace.output.shape[1:]),
        depth=trace.depth,
        calls=trace.calls,
        dtype=str(trace.output.dtype).removeprefix("torch."),
    )


def _pick(model: nn.Module, tracer: _Tracer) -> list[str]:
    """Return the outermost blocks that can take a branch, the head left out."""
    found: list[str] = []
    _walk(model, "", tracer, found)
    head = tracer.last_weight_layer
    blocks = [name for name in found if name != head and not head.startswith(f"{name}.")]
    return blocks or found


def _walk(module: nn.Module, name: str, tracer: _Tracer, found: list[str]) -> None:
    children = [(f"{name}.{key}" if name else key, child) for key, child in module.named_children()]
    weighty = [(path, child) for path, child in children if _holds_weights(child)]
    whole = name and not (isinstance(module, _CONTAINERS) and len(weighty) > 1)
    if whole and not _problem(module, tracer.traces.get(name), "branch"):
        found.append(name)
        return
    for path, child in weighty:
        _walk(child, path, tracer, found)


def _owns_weights(module: nn.Module) -> bool:
    """Whether the module itself has a matrix; biases and norms have vectors only."""
    return any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))


def _holds_weights(module: nn.Module) -> bool:
    return any(_owns_weights(part) for part in module.modules())


def _shape(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _kind(value: object) -> str:
    return f"a {value.dtype} tensor" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _listed(names: Iterable[str]) -> str:
    """Name at most a dozen, so that an error about a large model stays readable."""
    shown = list(names)
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")
