"""The sensors of G1 and G3: one pass of a seed on its host, looked at from both sides, and nothing kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.flops import count_multiply_adds
from esper.core.inputs import Batch, Inputs, Output, first_samples, main_of, source_of
from esper.kasmina._gate_gradients import NO_GRADIENTS, GradientEvidence, GradientRecord
from esper.kasmina._gate_interface import InterfaceEvidence, Seam, evidence_of
from esper.kasmina._graft import Graft, GraftedSeed, PassFocus
from esper.kasmina._isolation import checksums, random_states
from esper.kasmina._passes import HostPasses
from esper.kasmina._seed_training import LossFunction
from esper.kasmina._slots import SlotSpec

logger = logging.getLogger("esper.kasmina")

#: A rehearsal needs a gradient, not a good estimate of it.
_SAMPLES_MAX = 64


def rehearse(
    model: nn.Module,
    passes: HostPasses,
    focus: PassFocus,
    *,
    spec: SlotSpec,
    seed: GraftedSeed,
    batch: Batch,
    loss_fn: LossFunction,
    rng_seed: int,
) -> tuple[GradientEvidence, int]:
    """Give a seed that is not planted one shadow forward and backward, and take it off again; it learns nothing.

    Returns what they showed, and their multiply-adds. The host's tensors, gradients and random streams are compared by
    content before and after. A pass that torch refuses (shapes, memory) leaves no gradient, and G1 fails.
    """
    inputs, targets = (first_samples(each, _SAMPLES_MAX) for each in batch)
    before, streams = _contents(model), random_states(passes.devices)
    parameters = list(seed.parameters())
    graft = Graft(model, spec, "rehearsal", seed)

    def shadow_pass() -> None:
        try:
            with torch.enable_grad():
                with passes.quiet(seed=rng_seed), focus.on(shadowed=seed):
                    loss = loss_fn(passes.forward(inputs), targets)
                if loss.requires_grad:
                    torch.autograd.backward(loss)
        except RuntimeError as error:
            logger.warning("the rehearsal of a seed in %s failed: %s", spec.slot, error)

    try:
        multiply_adds = count_multiply_adds(shadow_pass)
    finally:
        graft.remove()
    record = _norm_record([parameter.grad for parameter in parameters if parameter.grad is not None])
    for parameter in parameters:
        parameter.grad = None
    after = _contents(model)
    changes = sum(before.get(name) != after.get(name) for name in before | after)
    changes += sum(not torch.equal(old, new) for old, new in zip(streams, random_states(passes.devices), strict=True))
    return GradientEvidence(record, host_changes=changes, seed_changes=0), multiply_adds


def _norm_record(gradients: list[Tensor]) -> GradientRecord:
    if not gradients:
        return NO_GRADIENTS
    norm = float(get_total_norm(gradients, foreach=False))
    return GradientRecord(steps=1, lowest=norm, highest=norm)


def _contents(model: nn.Module) -> dict[str, int]:
    """Return a checksum of every parameter, buffer and gradient of the host, by name."""
    parameters = dict(model.named_parameters())
    gradients = {f"{name} (gradient)": each.grad for name, each in parameters.items() if each.grad is not None}
    tensors: dict[str, Tensor] = {**parameters, **dict(model.named_buffers()), **gradients}
    return dict(zip(tensors, checksums(tensors.values()), strict=True))


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
