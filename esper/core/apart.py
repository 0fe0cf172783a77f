"""What a network's training must not feel of a forward beside it: modes, buffers, parameters and random streams.

Modes are flags here: `nn.Module.train` and `eval` are never called, as modules override them to do more than set the
flag (LoRA layers merge their weights there, and torch would not know).
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn

#: What numpy's global generator takes as a seed.
_NUMPY_SEEDS: Final = 1 << 32
#: Generators that nobody uses now: one of a kind that the global one may be takes longer to make than to seed again.
_numpys_spares: list[Any] = []


def cuda_devices(tensors: Iterable[Tensor]) -> tuple[torch.device, ...]:
    """Return the CUDA devices that `tensors` live on, each once."""
    return tuple(dict.fromkeys(tensor.device for tensor in tensors if tensor.is_cuda))


def random_states(devices: Iterable[torch.device]) -> list[Tensor]:
    """Return the random streams of the CPU and of `devices` (CUDA)."""
    return [torch.default_generator.get_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


@contextmanager
def forked_rng(devices: Iterable[torch.device] = (), *, seed: int | None = None) -> Iterator[None]:
    """Give the block random streams of its own, started from `seed`, and set the outer ones back after it.

    Covers torch's stream of the CPU and those of `devices` (CUDA), and the global ones of Python's `random` and of
    numpy; no other device's stream is touched, as `torch.manual_seed` would. Without a seed the block starts from where
    the outer streams stand.
    """
    devices = tuple(devices)
    with torch.random.fork_rng(devices=devices), _python_streams(seed):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
        yield


@contextmanager
def _python_streams(seed: int | None) -> Iterator[None]:
    """Do the same for the global generators that a forward written in Python may draw from."""
    before = random.getstate()
    if seed is not None:
        random.seed(seed)
    try:
        with nullcontext() if "numpy" not in sys.modules else _numpys_stream(seed):
            yield
    finally:
        random.setstate(before)


@contextmanager
def _numpys_stream(seed: int | None) -> Iterator[None]:
    """Put another generator in the place of numpy's global one: to read and set its state takes ten times as long."""
    numpy: Any = sys.modules["numpy"]
    outer = numpy.random.get_bit_generator()
    if seed is None:
        inner = copy.deepcopy(outer)
        numpy.random.set_bit_generator(inner)
    else:
        inner = _numpys_spares.pop() if _numpys_spares else numpy.random.MT19937()
        numpy.random.set_bit_generator(inner)
        numpy.random.seed(seed % _NUMPY_SEEDS)
    try:
        yield
    finally:
        numpy.random.set_bit_generator(outer)
        if seed is not None:
            _numpys_spares.append(inner)


def in_backward() -> bool:
    """Whether autograd runs a backward on this thread: a forward that runs now is one that runs again."""
    return torch._C._current_graph_task_id() != -1  # noqa: SLF001 - torch has no public door to it


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Run the block with every module's flag at eval; each gets its own back, frozen parts included."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


#: Tensor of a module -> what stands in its place during the block.
StandIn = Callable[[Tensor], Tensor]


@contextmanager
def stood_in(
    model: nn.Module, *, parameter: StandIn, buffer: StandIn, known: dict[int, Tensor] | None = None
) -> Iterator[None]:
    """Run the block with others in the place of the model's tensors; what is tied has one stand-in.

    As `torch.func.functional_call` does, which looks every tensor up by its name, twice: on a transformer that took
    as long again as its forward. `known`: stand-ins that are there already, by the id of the tensor.
    """
    stand_ins = {} if known is None else known
    kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
    try:
        for module in model.modules():
            parameters: dict[str, Any] = module._parameters  # noqa: SLF001 - where torch's own stand-ins go, too
            buffers: dict[str, Any] = module._buffers  # noqa: SLF001 - as above
            for tensors, stand_in in ((parameters, parameter), (buffers, buffer)):
                if not tensors:
                    continue
                kept.append((tensors, dict(tensors)))
                for name, tensor in kept[-1][1].items():
                    if tensor is not None:
                        found = stand_ins.get(id(tensor))
                        tensors[name] = stand_ins[id(tensor)] = stand_in(tensor) if found is None else found
        yield
    finally:
        for tensors, before in kept:
            tensors.update(before)


@contextmanager
def measured(model: nn.Module) -> Iterator[None]:
    """Run the block's forwards of `model` in eval mode, without gradients, and without a trace.

    Its buffers are stood in for, its modes and all random streams come back. Attributes that a module's own Python
    code changes, outside its buffers, are not covered.
    """
    devices = cuda_devices(model.parameters())
    with (
        torch.no_grad(),
        in_eval_mode(model),
        forked_rng(devices),
        stood_in(model, parameter=lambda tensor: tensor, buffer=torch.clone),
    ):
        yield
