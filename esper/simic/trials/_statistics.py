"""Statistics of paired runs in strata: means, interquartile means, intervals, probabilities of improvement, tests.

A stratum is a cell (a task and a host), its figures are the pairs of its seeds; strata count alike. S: strata, n: pairs
of one, B: resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with the bounds of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """How one arm stands to a rival over paired runs; differences are the arm's figure less the rival's.

    `p_value` is one-sided, of no difference above `-margin`.
    """

    pairs: int
    mean: Estimate
    interquartile_mean: Estimate
    improvement: Estimate
    p_value: float


def interquartile_mean(values: Floats) -> Floats:
    """Return the mean of the middle half along the last axis, with fractional weights at its ends.

    For n figures a quarter of them, n/4, is cut off at each side; where that is no whole number the outermost figures
    that remain count in part, so that few figures give no jump (Agarwal et al., 2021, use scipy's `trim_mean`, which
    cuts whole ones).
    """
    ordered = np.sort(values, axis=-1)
    count = ordered.shape[-1]
    edges = np.arange(count + 1, dtype=np.float64)
    weights = np.clip(np.minimum(edges[1:], 0.75 * count) - np.maximum(edges[:-1], 0.25 * count), 0.0, 1.0)
    found: Floats = ordered @ weights / weights.sum()
    return found


def mean_of_means(strata: Sequence[Floats]) -> Floats:
    """Return the mean over strata of their means along the last axis."""
    found: Floats = np.mean([each.mean(axis=-1) for each in strata], axis=0)
    return found


def improvement_share(strata: Sequence[Floats]) -> Floats:
    """Return the share of pairs in which the arm is better, ties half, the mean over strata.

    This is the probability of improvement of Agarwal et al. (2021) for runs that are paired.
    """
    shares = [(np.sign(each).mean(axis=-1) + 1.0) / 2.0 for each in strata]
    found: Floats = np.mean(shares, axis=0)
    return found


def resampled(strata: Sequence[Floats], *, resamples: int, seed: int) -> list[Floats]:
    """Return each stratum resampled with replacement among its own pairs, [B, n] (Efron, 1979, stratified)."""
    draws = np.random.default_rng(seed)
    return [each[draws.integers(0, len(each), (resamples, len(each)))] for each in strata]


def interval(values: Floats, *, level: float) -> tuple[float, float]:
    """Return the percentile interval of `1 - level`."""
    low, high = np.quantile(values, [level / 2.0, 1.0 - level / 2.0])
    return float(low), float(high)


def sign_flip_p(strata: Sequence[Floats], *, resamples: int, seed: int) -> float:
    """Return the one-sided p-value of a mean of 0 or less: signs of pairs are flipped at random (Fisher, 1935).

    Exact where differences are symmetric about 0 under the hypothesis; never 0, for the observed signs count.
    """
    draws = np.random.default_rng(seed)
    observed = float(mean_of_means(strata))
    flipped = [each * draws.choice((-1.0, 1.0), (resamples, len(each))) for each in strata]
    at_least = int(np.count_nonzero(mean_of_means(flipped) >= observed - 1e-12))
    return (1 + at_least) / (1 + resamples)


def compare(strata: Sequence[Floats], *, margin: float, level: float, resamples: int, seed: int) -> Comparison:
    """Return how an arm stands to a rival, from the differences of each stratum's pairs, [n] each.

    Intervals are percentile bootstrap intervals of `1 - level`, pairs resampled within strata.
    """
    drawn = resampled(strata, resamples=resamples, seed=seed)
    together, drawn_together = np.concatenate(strata), np.concatenate(drawn, axis=-1)
    figures = {
        "mean": (mean_of_means(strata), mean_of_means(drawn)),
        "interquartile_mean": (interquartile_mean(together), interquartile_mean(drawn_together)),
        "improvement": (improvement_share(strata), improvement_share(drawn)),
    }
    found = {name: Estimate(float(value), *interval(many, level=level)) for name, (value, many) in figures.items()}
    return Comparison(
        pairs=sum(len(each) for each in strata),
        p_value=sign_flip_p([each + margin for each in strata], resamples=resamples, seed=seed + 1),
        **found,
    )


def estimate(strata: Sequence[Floats], *, level: float, resamples: int, seed: int) -> tuple[Estimate, Estimate]:
    """Return the mean over strata and the interquartile mean over all figures, with their intervals."""
    drawn = resampled(strata, resamples=resamples, seed=seed)
    mean = Estimate(float(mean_of_means(strata)), *interval(mean_of_means(drawn), level=level))
    middle = interquartile_mean(np.concatenate(drawn, axis=-1))
    return mean, Estimate(float(interquartile_mean(np.concatenate(strata))), *interval(middle, level=level))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for all of their family (Holm, 1979), in the given order."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
