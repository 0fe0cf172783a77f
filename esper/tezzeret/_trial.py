"""A compiled part before its judge: is it equal to eager, how fast is it, and how soon is it open."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Final

import torch
from torch import Tensor

from esper.core.clock import SYSTEM_CLOCK
from esper.core.kernel import Kernel
from esper.core.kernel._compiled import CompiledKernel, open_packages
from esper.core.kernel._parts import PARITY_TOLERANCE
from esper.core.rng import derive_seed
from esper.leyline import messages as ly
from esper.tezzeret._measure import example, forward_call, profile, time_pair, train_call

PARITY_BATCHES: Final = (1, 2, 7, 64)
_STREAMS: Final = 8
_END_BOUND: Final = 0.5


def awake(kernel: Kernel) -> Kernel:
    """Return a copy whose end is not zero any more, as after training: a sleeping kernel equals everything."""
    copy = deepcopy(kernel)
    generator = torch.Generator().manual_seed(derive_seed(0, "awake"))
    with torch.no_grad():
        for _, parameter in sorted(copy.end.named_parameters()):
            drawn = torch.empty(parameter.shape, dtype=parameter.dtype)
            parameter.copy_(drawn.uniform_(-_END_BOUND, _END_BOUND, generator=generator))
    return copy


def try_part(
    kernel: Kernel, packages: Sequence[bytes], *, device: torch.device, batch: int, samples: int
) -> tuple[ly.KernelPartCompiled, ly.BlueprintBenchmark]:
    """Return parity, speed and the time to open of a part, in a record that has no more than these; and all latencies.

    `warm_compile_ms` is the time from the packages' bytes to the end of the first call.
    """
    eager = awake(kernel).to(device)
    trains = len(packages) == 2
    inputs = example(eager, batch, device=device)
    began = SYSTEM_CLOCK.monotonic()
    compiled = open_packages(eager, packages, device=device)
    call = train_call if trains else _forward_of
    call(compiled, compiled, inputs)()
    warm_ms = (SYSTEM_CLOCK.monotonic() - began) * 1e3
    parity = measure_parity(eager, compiled, device=device, trains=trains)
    pair = time_pair(call(eager, eager, inputs), call(compiled, compiled, inputs), device=device, samples=samples)
    word = "train" if trains else "forward"
    profiles = [
        profile(f"{name}.{word}", seconds, batch=batch)
        for name, seconds in zip(("eager", "compiled" if trains else "aot"), pair, strict=True)
    ]
    # A part that failed on the way answered eagerly: it is equal to eager, and worth nothing.
    parity.passed = parity.passed and not compiled.reason
    speedup = profiles[0].latency.p50_ms / profiles[1].latency.p50_ms if not compiled.reason else 0.0
    record = ly.KernelPartCompiled(parity=parity, warm_compile_ms=warm_ms, speedup=speedup, reason=compiled.reason)
    return record, ly.BlueprintBenchmark(profiles=profiles)


def measure_parity(eager: Kernel, compiled: CompiledKernel, *, device: torch.device, trains: bool) -> ly.ParityFigures:
    """Return the largest differences over seeded inputs of several batch sizes; gradients are those of a mean."""
    forward = backward = 0.0
    for batch in PARITY_BATCHES:
        for stream in range(_STREAMS):
            inputs = example(eager, batch, device=device, stream=f"parity-{stream}")
            grads, outs = zip(*(_answers(each, inputs, trains=trains) for each in (eager, compiled)), strict=True)
            forward = max(forward, _distance([outs[0]], [outs[1]]))
            backward = max(backward, _distance(grads[0], grads[1]))
    passed = max(forward, backward) <= PARITY_TOLERANCE
    return ly.ParityFigures(
        batches=PARITY_BATCHES,
        forward_abs_max=forward,
        backward_abs_max=backward,
        tolerance=PARITY_TOLERANCE,
        passed=passed,
    )


def _answers(kernel: Kernel, inputs: Tensor, *, trains: bool) -> tuple[list[Tensor], Tensor]:
    if not trains:
        with torch.no_grad():
            return [], kernel(inputs)
    leaf = inputs.detach().clone().requires_grad_()
    out = kernel(leaf)
    weight = torch.linspace(-1.0, 1.0, out[0].numel(), dtype=out.dtype, device=out.device).reshape(out.shape[1:])
    leaves = [leaf, *kernel.parameters()]
    grads = torch.autograd.grad((out * weight).sum() / len(out), leaves, allow_unused=True, materialize_grads=True)
    return list(grads), out.detach()


def _distance(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Return the largest absolute difference, in units of the largest value of its tensor `left` where that is above 1.

    Sums over many positions are large, and so is their rounding; small values are held to the same absolute bound.
    Infinite where one side alone is not finite.
    """
    found = 0.0
    for one, other in zip(left, right, strict=True):
        if one.numel():
            difference = ((one - other).abs().max() / one.abs().max().clamp(min=1.0)).item()
            found = max(found, math.inf if math.isnan(difference) else difference)
    return found


def _forward_of(function: Callable[[Tensor], Tensor], _kernel: Kernel, inputs: Tensor) -> Callable[[], object]:
    return forward_call(function, inputs)
