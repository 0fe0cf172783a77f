"""The sensor of G3: a seed beside its host at every call of its slot, and nothing kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.inputs import Inputs, Output, main_of, source_of
from esper.kasmina.gates._interface import InterfaceEvidence, Seam, evidence_of
from esper.kasmina.grafting._passes import HostPasses
from esper.kasmina.grafting._seed import GraftedSeed, PassFocus
from esper.kasmina.grafting._slots import SlotSpec

logger = logging.getLogger("esper.kasmina")


def inspect_interface(
    model: nn.Module,
    passes: HostPasses,
    focus: PassFocus,
    *,
    spec: SlotSpec,
    seed: GraftedSeed,
    inputs: Inputs,
    clock: Clock = SYSTEM_CLOCK,
) -> InterfaceEvidence:
    """Run the seed beside the host at every call of its slot in one forward, and return what fits and what does not."""
    seams: list[Seam] = []
    latencies_ms: list[float] = []

    def watch(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Output) -> None:
        main = main_of(output)
        source = source_of(args, kwargs) if spec.placement == "branch" else main
        _wait_for(main)
        began = clock.monotonic()
        given = _given(seed, source)
        _wait_for(main)
        latencies_ms.append(1e3 * (clock.monotonic() - began))
        seams.append(_seam(main, given))

    handle = model.get_submodule(spec.module).register_forward_hook(watch, with_kwargs=True)
    try:
        with torch.no_grad(), passes.quiet(seed=0), focus.on(muted=seed):
            passes.forward(inputs)
    finally:
        handle.remove()
    return evidence_of(seams, latencies_ms=latencies_ms)


def _given(seed: GraftedSeed, source: Tensor) -> Tensor | None:
    try:
        given: Tensor = seed.body(source)
    except RuntimeError as error:
        logger.warning("a seed cannot read its slot any more: %s", error)
        return None
    return given


def _seam(output: Tensor, given: Tensor | None) -> Seam:
    host = (tuple(output.shape), output.dtype, output.device)
    if given is None:
        return Seam(host, (None, None, None), finite=False)
    return Seam(host, (tuple(given.shape), given.dtype, given.device), finite=bool(torch.isfinite(given).all()))


def _wait_for(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
