"""Extra forwards of a host that leave no trace on it: for shadows, probes and traces.

What could leak from such a pass into the host's training is closed one by one: parameters are detached,
buffers cloned, every module set to eval mode and back, and the random streams forked. `Isolation` switches
each of these off, so that tests can show that each is needed. Attributes that a module's own Python code
changes during forward, outside its buffers, are not covered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from esper.core.inputs import Inputs, Output, call, detached


@dataclass(frozen=True)
class Isolation:
    """What keeps an extra pass apart from the host; every part stays on outside of tests."""

    detach: bool = True
    clone_buffers: bool = True
    eval_mode: bool = True
    fork_rng: bool = True
    #: Whether breaches are looked for at all; a test that shows what a breach does must let it happen.
    monitor: bool = True


def cuda_devices(tensors: Iterable[Tensor]) -> tuple[torch.device, ...]:
    """Return the CUDA devices that `tensors` live on, each once."""
    return tuple(dict.fromkeys(tensor.device for tensor in tensors if tensor.is_cuda))


@contextmanager
def forked_rng(devices: Iterable[torch.device] = (), *, seed: int | None = None) -> Iterator[None]:
    """Give the block random streams of its own, started from `seed`, and set the outer ones back after it.

    Covers the CPU's stream and those of `devices` (CUDA); no other device's stream is touched, as
    `torch.manual_seed` would. Without a seed the block starts from where the outer streams stand.
    """
    devices = tuple(devices)
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
        yield


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Run the block with every module in eval mode; each gets its own flag back, frozen parts included."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def _countable_attention() -> Iterator[None]:
    """Run the block without torch's fused encoder layers, which no flop counter can see into."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class HostPasses:
    """Runs a host beside its training."""

    def __init__(self, model: nn.Module, *, isolation: Isolation | None = None) -> None:
        self._model = model
        self._isolation = isolation or Isolation()
        self.devices = cuda_devices(model.parameters())

    @contextmanager
    def quiet(self, *, seed: int) -> Iterator[None]:
        """Make the block's forwards leave modes and random streams as they were; draws start from `seed`."""
        with ExitStack() as stack:
            stack.enter_context(_countable_attention())
            if self._isolation.eval_mode:
                stack.enter_context(in_eval_mode(self._model))
            if self._isolation.fork_rng:
                stack.enter_context(forked_rng(self.devices, seed=seed))
            yield

    def forward(self, inputs: Inputs, *, replaced: Mapping[str, Tensor] | None = None) -> Output:
        """Return the host's outputs for `inputs`; autograd sees none of its parameters, its buffers stay.

        The parameters named in `replaced` have those values instead of their own.
        Gradients flow only through what a slot's hook puts in. Call it inside `quiet`.
        """
        with self._stood_in_for(replaced or {}):
            return call(self._model, detached(inputs))

    @contextmanager
    def _stood_in_for(self, replaced: Mapping[str, Tensor]) -> Iterator[None]:
        """Run the block with others in the place of the host's tensors; what is tied has one stand-in.

        As `torch.func.functional_call` does, which looks every tensor up by its name, twice: on a transformer that took
        as long again as its forward.
        """
        stand_ins = {id(self._model.get_parameter(name)): tensor for name, tensor in replaced.items()}
        kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
        try:
            for module in self._model.modules():
                parameters: dict[str, Any] = module._parameters  # noqa: SLF001 - where torch's own stand-ins go, too
                buffers: dict[str, Any] = module._buffers  # noqa: SLF001 - as above
                for tensors, stand_in in ((parameters, self._of_parameter), (buffers, self._of_buffer)):
                    if not tensors:
                        continue
                    kept.append((tensors, dict(tensors)))
                    for name, tensor in kept[-1][1].items():
                        if tensor is not None:
                            known = stand_ins.get(id(tensor))
                            tensors[name] = stand_ins[id(tensor)] = stand_in(tensor) if known is None else known
            yield
        finally:
            for tensors, before in kept:
                tensors.update(before)

    def _of_parameter(self, parameter: Tensor) -> Tensor:
        return parameter.detach() if self._isolation.detach else parameter

    def _of_buffer(self, buffer: Tensor) -> Tensor:
        return buffer.clone() if self._isolation.clone_buffers else buffer
