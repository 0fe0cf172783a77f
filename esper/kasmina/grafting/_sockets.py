"""Slots of compiled hosts: one operator of torch at each slot, which seeds may come to and leave without a trace.

What `torch.compile` makes of a host sees neither hooks nor modules that come later. A socket is a hook that is there
before the host is compiled. Compiled, it is one opaque operator, so that no graph ends at a slot and none changes with
what happens in it: no graft, blend or cull compiles anything anew. Uncompiled, it is a plain hook.

The operator runs its seeds as eager code does, keeps their autograd graph, and runs that in its own backward. Of a
slot that hears nobody it returns a copy, and the gradient as it came.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from esper.core.eager import EagerHook, forget_compiled
from esper.core.errors import IntegrityError
from esper.core.inputs import Output, main_of, source_of, with_main
from esper.kasmina.grafting._slots import SlotSpec

#: (module, its positional arguments, its output) -> what is heard instead; None leaves the output alone.
SeedHook = Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]

_T = TypeVar("_T")

_NOBODY: Final = -1
#: Torch 2.11 says of whatever it compiles that it exports it.
_TELLS_EXPORTS: Final = TorchVersion(torch.__version__) >= TorchVersion("2.15")
_SLOT_SCHEMA: Final = (
    "(Tensor output, Tensor source, int handle, bool learns, bool autocast, ScalarType dtype) -> (Tensor, Tensor)"
)
_BACK_SCHEMA: Final = "(Tensor gradient, Tensor source, Tensor key, int handle) -> (Tensor, Tensor)"
_handles = itertools.count()
#: Below zero: they share a set with the ids of torch's own hooks.
_places = itertools.count(-1, -1)


@dataclass(frozen=True)
class _Kept:
    """What the backward of one forward needs."""

    output: Tensor
    source: Tensor
    heard: Tensor


class Socket:
    """The forward hook of a slot's module that stays; its seeds are heard in the order in which they came."""

    def __init__(self, module: nn.Module, seeds: dict[int, SeedHook] | None = None) -> None:
        self._module = module
        self._seeds = seeds or {}
        self._kept: dict[int, _Kept] = {}
        self._keys = itertools.count()
        self.handle = next(_handles)
        _SOCKETS[self.handle] = self

    def __reduce__(self) -> tuple[type[Socket], tuple[nn.Module, dict[int, SeedHook]]]:
        return Socket, (self._module, self._seeds)

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Output) -> Output:
        """Return what the slot's module gives now, as torch asks a forward hook."""
        main, source = main_of(output), source_of(args, kwargs)
        heard: Tensor | None
        if _becomes_compiled():
            heard = self._in_graph(source if isinstance(source, Tensor) else main, main)
        else:
            heard = self.hear((source,), main)
        return None if heard is None else with_main(output, heard)

    def _in_graph(self, source: Tensor, output: Tensor) -> Tensor:
        kind = output.device.type
        heard, _ = torch.ops.esper.slot(
            output,
            source,
            self.handle,
            torch.is_grad_enabled() and output.requires_grad,
            torch.is_autocast_enabled(kind),
            torch.get_autocast_dtype(kind),
        )
        return heard  # type: ignore[no-any-return]  # torch types its operators as Any

    def hear(self, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Return the output with what the seeds add to it; None where none adds anything."""
        heard: Tensor | None = None
        for hook in list(self._seeds.values()):
            added = hook(self._module, args, output if heard is None else heard)
            heard = heard if added is None else added
        return heard

    @property
    def places(self) -> set[int]:
        """The places that are taken."""
        return set(self._seeds)

    def take(self, hook: SeedHook) -> int:
        """Let a seed be asked from now on; return its place.

        It is never traced: not by a torch that looks into what an operator calls, nor where torch gives up the frame
        around the slot and traces what that calls. A seed counts its draws: each count would be compiled anew.
        """
        place = next(_places)
        self._seeds[place] = EagerHook(hook)
        return place

    def leave(self, place: int) -> None:
        """Ask the seed at this place no more."""
        self._seeds.pop(place, None)

    def forget_forwards(self) -> None:
        """Drop what was kept for backwards that did not come."""
        self._kept.clear()

    # -- what the operator calls ----------------------------------------------------------------------------

    def run(self, output: Tensor, source: Tensor, *, learns: bool) -> tuple[Tensor, int]:
        """Return what is heard, in new memory, and the key under which its graph is kept."""
        if not self._seeds:
            return output.clone(), _NOBODY
        with _graph_kept() if learns else torch.no_grad():
            output = output.detach().requires_grad_(learns)
            source = source.detach().requires_grad_(learns and source.is_floating_point())
            heard = self.hear((source,), output)
        if heard is None:
            return output.detach().clone(), _NOBODY
        if not learns:
            return heard, _NOBODY
        key = next(self._keys)
        self._kept[key] = _Kept(output, source, heard)
        return heard.detach().clone(), key

    def run_back(self, gradient: Tensor, source: Tensor, key: int) -> tuple[Tensor, Tensor]:
        """Return the gradients of output and source; those of the seeds are added to their parameters."""
        if key == _NOBODY:
            # x + -0.0 is x for every x, -0.0 included, so the host's own gradient keeps its bits.
            return gradient.clone(), torch.full_like(source, -0.0)
        kept = self._kept.pop(key, None)
        if kept is None:
            raise IntegrityError(
                "a seed of a compiled host cannot learn from this backward",
                cause="its forward ran before the last run.step, or was run backwards already",
                next_step="Call run.step after the backwards of a step, and run each graph backwards once",
            )
        with torch.enable_grad():
            torch.autograd.backward(kept.heard, gradient)
        to_output, to_source = kept.output.grad, kept.source.grad
        return (
            torch.full_like(gradient, -0.0) if to_output is None else to_output,
            torch.full_like(source, -0.0) if to_source is None else to_source.to(source.dtype),
        )


def _becomes_compiled() -> bool:
    """Whether torch makes a graph to run in this process of what calls this; one to export is to hold no socket."""
    return torch.compiler.is_dynamo_compiling() and not (_TELLS_EXPORTS and torch.compiler.is_exporting())


_SOCKETS: weakref.WeakValueDictionary[int, Socket] = weakref.WeakValueDictionary()


def _socket(handle: int) -> Socket:
    found = _SOCKETS.get(handle)
    if found is None:
        raise IntegrityError(
            "a slot of a compiled host is gone",
            cause="its hooks were removed after it was compiled",
            next_step="Call torch.compiler.reset() after you remove hooks",
        )
    return found


@contextmanager
def _precision(kind: str, *, enabled: bool, dtype: torch.dtype) -> Iterator[None]:
    """Run the block under the autocast that the code around the slot was compiled for."""
    with torch.autocast(kind, dtype=dtype, enabled=enabled):
        yield


@contextmanager
def _graph_kept() -> Iterator[None]:
    """Let autograd see the block, although it runs inside an operator, where torch shuts autograd out."""
    autograd = torch._C.DispatchKey.AutogradFunctionality  # noqa: SLF001 - torch has no public door to it
    with torch._C._SetExcludeDispatchKeyGuard(autograd, False), torch.enable_grad():  # noqa: SLF001 - as above
        yield


@functools.cache
def _untraced(work: Callable[..., _T]) -> Callable[..., _T]:
    """Return `work` such that torch compiles none of it: torch 2.11 looks into what an operator of its graphs calls."""
    return torch.compiler.disable(work)  # type: ignore[no-untyped-call, no-any-return]  # unannotated in torch


def _slot(
    output: Tensor, source: Tensor, handle: int, learns: bool, autocast: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    with _precision(output.device.type, enabled=autocast, dtype=dtype):
        heard, key = _untraced(Socket.run)(_socket(handle), output, source, learns=learns)
    return heard, torch.tensor(key)


def _slot_back(gradient: Tensor, source: Tensor, key: Tensor, handle: int) -> tuple[Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor] = _untraced(Socket.run_back)(_socket(handle), gradient, source, int(key))
    return gradients


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401 - torch's own
    ctx.save_for_backward(inputs[1], output[1])
    ctx.handle = inputs[2]


def _backward(ctx: Any, gradient: Tensor, _key: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's own
    source, key = ctx.saved_tensors
    to_output, to_source = torch.ops.esper.slot_back(gradient.contiguous(), source, key, ctx.handle)
    return to_output, to_source if ctx.needs_input_grad[1] else None, None, None, None, None


def _define() -> None:
    """Tell torch of the operators. CUDA graphs are cut at them: what they do changes from step to step."""
    tags = (torch.Tag.cudagraph_unsafe,)
    slot = torch.library.custom_op("esper::slot", _slot, mutates_args=(), schema=_SLOT_SCHEMA, tags=tags)
    slot.register_fake(lambda output, *_: (torch.empty_like(output), torch.empty((), dtype=torch.int64, device="cpu")))
    slot.register_autograd(_backward, setup_context=_remember)
    back = torch.library.custom_op("esper::slot_back", _slot_back, mutates_args=(), schema=_BACK_SCHEMA, tags=tags)
    back.register_fake(lambda gradient, source, *_: (torch.empty_like(gradient), torch.empty_like(source)))


_define()


def socket_of(module: nn.Module) -> Socket | None:
    """Return the socket of a slot's module, if it has one."""
    hooks = module._forward_hooks.values()  # noqa: SLF001 - torch lists them nowhere else
    return next((hook for hook in hooks if isinstance(hook, Socket)), None)


def hook_ids(module: nn.Module) -> set[int]:
    """Return what names every seed and every hook that is asked after the module's forward."""
    socket = socket_of(module)
    ids = set(module._forward_hooks)  # noqa: SLF001 - torch lists them nowhere else
    return ids if socket is None else ids | socket.places


def is_compiled(model: nn.Module) -> bool:
    """Return whether `nn.Module.compile` compiled the model or a part of it."""
    return any(module._compiled_call_impl is not None for module in model.modules())  # noqa: SLF001 - no other sign


def add_sockets(model: nn.Module, slots: Iterable[SlotSpec]) -> None:
    """Make these slots of a compiled host sockets; what was compiled before is compiled once more.

    From then on nothing that happens to seeds compiles anything anew, and what is compiled stays whole. To be called
    before the seed manager is made.
    """
    modules = [model.get_submodule(spec.module) for spec in slots]
    fresh = [module for module in modules if socket_of(module) is None]
    for module in dict.fromkeys(fresh):
        module.register_forward_hook(Socket(module), with_kwargs=True)
    if fresh:
        forget_compiled()
