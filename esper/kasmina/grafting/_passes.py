"""Extra forwards of a host that leave no trace on it: for shadows, probes and traces.

What could leak from such a pass into the host's training is closed one by one: parameters are detached,
buffers cloned, every module set to eval mode and back, and the random streams forked. `Isolation` switches
each of these off, so that tests can show that each is needed. Attributes that a module's own Python code
changes during forward, outside its buffers, are not covered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from esper.core.apart import cuda_devices, forked_rng, in_eval_mode, stood_in
from esper.core.inputs import Inputs, Output, call, copied


@dataclass(frozen=True)
class Isolation:
    """What keeps an extra pass apart from the host; every part stays on outside of tests."""

    detach: bool = True
    clone_buffers: bool = True
    eval_mode: bool = True
    fork_rng: bool = True
    #: Whether breaches are looked for at all; a test that shows what a breach does must let it happen.
    monitor: bool = True


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
        self._stands = False
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

    @contextmanager
    def standing_in(self, replaced: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """Run the block with copies in the place of the host's buffers, and with parameters that autograd does not see.

        Where a pass is run backwards, its backward belongs into the block too: a host that computes parts of its
        forward again there (activation checkpointing) must find what it found before. `replaced`: see `forward`.
        """
        known = {id(self._model.get_parameter(name)): tensor for name, tensor in (replaced or {}).items()}
        before, self._stands = self._stands, True
        try:
            with stood_in(self._model, parameter=self._of_parameter, buffer=self._of_buffer, known=known):
                yield
        finally:
            self._stands = before

    def forward(self, inputs: Inputs, *, replaced: Mapping[str, Tensor] | None = None) -> Output:
        """Return the host's outputs for a copy of `inputs`; autograd sees none of its parameters, its buffers stay.

        The parameters named in `replaced` have those values instead of their own.
        Gradients flow only through what a slot's hook puts in. Call it inside `quiet`.
        """
        with nullcontext() if self._stands and not replaced else self.standing_in(replaced):
            return call(self._model, copied(inputs))

    def _of_parameter(self, parameter: Tensor) -> Tensor:
        return parameter.detach() if self._isolation.detach else parameter

    def _of_buffer(self, buffer: Tensor) -> Tensor:
        return buffer.clone() if self._isolation.clone_buffers else buffer
