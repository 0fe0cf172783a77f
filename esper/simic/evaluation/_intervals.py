"""Intervals by resampling whole episodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

SAMPLES: Final = 2_000


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its interval."""

    estimate: float
    low: float
    high: float


def resampled(episodes: int, *, generator: torch.Generator, samples: int = SAMPLES) -> Tensor:
    """Return how often each episode stands in each sample of as many episodes, float64 [samples, episodes]."""
    drawn = torch.randint(episodes, (samples, episodes), generator=generator)
    return torch.zeros(samples, episodes, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(samples, episodes, dtype=torch.float64)
    )


def of_mean(figures_R: Tensor, counts_BR: Tensor, *, coverage: float) -> Interval:
    """Return the interval of a mean of figures, one an episode, by the bootstrap-t (Efron, 1981).

    Each sample's mean is set in units of its own standard error, so that skewed figures, as importance weights make
    them, do not make the interval too short on the side where it matters.
    """
    figures, count = figures_R.double(), len(figures_R)
    mean, error = figures.mean(), figures.std(correction=0) / count**0.5
    if count < 2 or float(error) == 0.0:
        return Interval(float(mean), float(mean), float(mean))
    means = counts_BR @ figures / count
    errors = ((counts_BR @ figures.square() / count - means.square()).clamp(min=0.0) / count).sqrt()
    away = (means - mean) / errors.clamp(min=float(error) * 1e-3)
    low, high = torch.quantile(away, torch.tensor([(1 - coverage) / 2, (1 + coverage) / 2], dtype=torch.float64))
    return Interval(float(mean), float(mean - high * error), float(mean - low * error))


def of_statistic(statistic: Callable[[Tensor], Tensor], counts_BR: Tensor, *, coverage: float) -> Interval:
    """Return the percentile interval of a statistic that takes counts [B, R] and gives [B]."""
    found = statistic(counts_BR)
    estimate = statistic(torch.ones(1, counts_BR.shape[1], dtype=torch.float64))
    low, high = torch.quantile(found, torch.tensor([(1 - coverage) / 2, (1 + coverage) / 2], dtype=torch.float64))
    return Interval(float(estimate), float(low), float(high))
