"""Three interleaved spirals, drawn on this machine (Lang and Witbrock, "Learning to Tell Two Spirals Apart", 1988)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from esper.core.rng import derive_seed
from esper.tolaria.tasks._mlp import mlp_host
from esper.tolaria.tasks._tasks import Split, Task

_ARMS = 3
_TURNS = 1.25
_NOISE = 0.03
_SAMPLES = {"train": 1500, "validation": 300, "test": 600}


def spirals() -> Task:
    """Return spirals: inputs [N, 2] float32 within about -1.1..1.1, 3 classes, 1500 train, 300 validation, 600 test.

    Each part is drawn from a stream of its own, the same for every run; an arm has a third of it.
    """
    parts = {name: _arms(samples, seed=derive_seed(0, "spirals", name)) for name, samples in _SAMPLES.items()}
    return Task(
        name="spirals",
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        classes=_ARMS,
        hosts={"mlp": mlp_host(inputs=2, hidden=4, classes=_ARMS)},
        sized={"mlp": lambda width: mlp_host(inputs=2, hidden=width, classes=_ARMS)},
        epochs=40,
    )


def _arms(samples: int, *, seed: int) -> Split:
    """Return `samples` noisy points, evenly shared among the arms and shuffled."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(samples, generator=generator)
    arm = order % _ARMS
    # Computed in double precision and rounded once: the last bits of a sine differ between processors.
    distance = torch.rand(samples, generator=generator, dtype=torch.float64).sqrt()
    angle = 2.0 * math.pi * (_TURNS * distance + arm / _ARMS)
    noise = _NOISE * torch.randn(samples, 2, generator=generator, dtype=torch.float64)
    points: Tensor = distance[:, None] * torch.stack((angle.cos(), angle.sin()), dim=1) + noise
    return Split(points.to(torch.float32), arm)
