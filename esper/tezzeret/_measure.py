"""Latency by many samples: every figure is a percentile over calls that were really made."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from esper.core.clock import SYSTEM_CLOCK
from esper.core.kernel import Kernel
from esper.core.rng import derive_seed
from esper.leyline import messages as ly

_WARM_UP_CALLS: Final = 5
#: A kernel so slow that its samples would take longer is measured with fewer, which the figures say.
_SECONDS_MAX: Final = 0.5
_SAMPLES_MIN: Final = 5
#: Calls of one way to run a kernel before the other has its turn.
_BLOCK: Final = 20


def percentile(values: Sequence[float], quantile: float) -> float:
    """Return the smallest value that at least `quantile` of all lie at or below (nearest rank); NaN without values."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(quantile * len(values)) - 1)]


def figures(seconds: Sequence[float], *, batch: int) -> ly.LatencyFigures:
    """Return what single calls took, in seconds, as percentiles in milliseconds."""
    return ly.LatencyFigures(
        samples=len(seconds),
        p50_ms=percentile(seconds, 0.5) * 1e3,
        p95_ms=percentile(seconds, 0.95) * 1e3,
        batch=batch,
    )


def profile(name: str, seconds: Sequence[float], *, batch: int) -> ly.BlueprintBenchmarkProfile:
    """Return one way to run a kernel, measured; throughput is that of the median call."""
    latency = figures(seconds, batch=batch)
    throughput = batch / (latency.p50_ms / 1e3) if latency.p50_ms > 0 else 0.0
    return ly.BlueprintBenchmarkProfile(name=name, latency=latency, throughput_samples_per_s=throughput)


def measure_eager(
    kernel: Kernel, *, device: torch.device, batch: int, samples: int
) -> list[ly.BlueprintBenchmarkProfile]:
    """Return the latency of an eager kernel: "eager.forward" without autograd, and "eager.train" with it."""
    kernel = kernel.to(device)
    inputs = example(kernel, batch, device=device)
    return [
        profile("eager.forward", time_calls(forward_call(kernel, inputs), device=device, samples=samples), batch=batch),
        profile(
            "eager.train",
            time_calls(train_call(kernel, kernel, inputs), device=device, samples=samples),
            batch=batch,
        ),
    ]


def example(kernel: Kernel, batch: int, *, device: torch.device, stream: str = "measure") -> Tensor:
    """Return inputs drawn from N(0, 1), the same for the same shape and stream: (batch, *in_shape)."""
    generator = torch.Generator().manual_seed(derive_seed(0, stream, batch))
    dtype = next(kernel.parameters()).dtype
    return torch.randn(batch, *kernel.plan.in_shape, generator=generator, dtype=dtype).to(device)


def forward_call(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Callable[[], object]:
    """Return a call of one forward that keeps nothing for a backward."""

    def call() -> object:
        with torch.no_grad():
            return function(inputs)

    return call


def train_call(function: Callable[[Tensor], Tensor], kernel: nn.Module, inputs: Tensor) -> Callable[[], object]:
    """Return a call of one forward and backward, through the parameters and into the input."""
    inputs = inputs.detach().clone().requires_grad_()
    leaves = [inputs, *kernel.parameters()]

    def call() -> object:
        for leaf in leaves:
            leaf.grad = None
        function(inputs).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return None

    return call


def time_calls(
    call: Callable[[], object], *, device: torch.device, samples: int, seconds_max: float = _SECONDS_MAX
) -> list[float]:
    """Return the wall-clock seconds of up to `samples` calls, each waited for, after some that are not counted."""
    for _ in range(_WARM_UP_CALLS):
        call()
    _wait(device)
    taken: list[float] = []
    began = SYSTEM_CLOCK.monotonic()
    for _ in range(samples):
        start = SYSTEM_CLOCK.monotonic()
        call()
        _wait(device)
        end = SYSTEM_CLOCK.monotonic()
        taken.append(end - start)
        if end - began > seconds_max and len(taken) >= _SAMPLES_MIN:
            break
    return taken


def time_pair(
    one: Callable[[], object], other: Callable[[], object], *, device: torch.device, samples: int
) -> tuple[list[float], list[float]]:
    """Return the seconds of calls of both, taken in turns, so that a machine's moods strike both alike."""
    found: tuple[list[float], list[float]] = ([], [])
    rounds = max(1, samples // _BLOCK)
    for _ in range(rounds):
        for call, seconds in zip((one, other), found, strict=True):
            seconds += time_calls(call, device=device, samples=_BLOCK, seconds_max=2 * _SECONDS_MAX / rounds)
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
