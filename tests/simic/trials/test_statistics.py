"""Statistics of paired runs against direct computation, exact enumeration and simulated truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.simic.trials import compare, holm, interquartile_mean
from esper.simic.trials._statistics import estimate, improvement_share, mean_of_means, sign_flip_p

FIGURES = st.lists(st.floats(-1.0, 1.0, allow_nan=False, width=32), min_size=1, max_size=40)


@given(FIGURES)
def test_the_interquartile_mean_is_that_of_the_middle_half(values: list[float]) -> None:
    """Direct: every figure four times, the lowest and the highest quarter cut off, the mean of the rest."""
    fourfold = np.sort(np.repeat(np.asarray(values, dtype=np.float64), 4))
    count = len(values)
    assert interquartile_mean(np.asarray(values, dtype=np.float64)) == pytest.approx(
        fourfold[count : 3 * count].mean(), abs=1e-12
    )


def test_strata_count_alike_whatever_their_size() -> None:
    """The mean of means, and the share of pairs that are better with ties half."""
    strata = [np.asarray([1.0, 3.0]), np.asarray([0.0, 0.0, 0.0, -4.0])]
    assert float(mean_of_means(strata)) == pytest.approx((2.0 - 1.0) / 2)
    assert float(improvement_share(strata)) == pytest.approx((1.0 + 0.375) / 2)


def test_sign_flips_agree_with_all_of_them() -> None:
    """The sampled p-value is that of the enumeration of all signs, within three standard errors."""
    differences = np.asarray([0.4, -0.1, 0.3, 0.25, -0.05, 0.2, 0.1, 0.02])
    signs = np.asarray(list(itertools.product((-1.0, 1.0), repeat=len(differences))))
    exact = float(np.mean((signs * differences).mean(axis=1) >= differences.mean() - 1e-12))
    sampled = sign_flip_p([differences], resamples=20_000, seed=3)
    assert abs(sampled - exact) < 3 * (exact * (1 - exact) / 20_000) ** 0.5 + 1e-4


def test_the_p_value_is_never_zero() -> None:
    """However clear the difference, the observed signs count among the flipped."""
    assert sign_flip_p([np.full(30, 0.5)], resamples=999, seed=0) >= 1 / 1000


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.6, 0.5], [1.0, 1.0]),
        ([], []),
    ],
)
def test_holm_by_hand(given: list[float], expected: list[float]) -> None:
    """Holm's step-down procedure on worked examples, in the order given."""
    assert holm(given) == pytest.approx(expected)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12))
def test_holm_never_makes_a_p_smaller_and_keeps_their_order(values: list[float]) -> None:
    """Adjusted values are at least the given ones, at most 1, and ordered alike."""
    adjusted = holm(values)
    assert all(one <= other <= 1.0 for one, other in zip(values, adjusted, strict=True))
    order = sorted(range(len(values)), key=lambda index: values[index])
    assert all(adjusted[a] <= adjusted[b] for a, b in itertools.pairwise(order))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Goal: calibrated intervals. Method: 300 simulated comparisons of 4 cells x 20 seeds with skewed differences whose
    true mean is known; 95 % intervals hold it in 91 to 98 % of them."""
    draws = np.random.default_rng(7)
    held = 0
    for number in range(300):
        strata = [0.05 + 0.1 * (draws.exponential(1.0, 20) - 1.0) for _ in range(4)]
        found = compare(strata, margin=0.0, level=0.05, resamples=1000, seed=number).mean
        held += found.low <= 0.05 <= found.high
    assert 0.91 * 300 <= held <= 0.98 * 300


def test_a_difference_that_is_none_is_rarely_shown() -> None:
    """Of 300 comparisons without any difference at most 5 % have a one-sided p of at most 0.025."""
    draws = np.random.default_rng(8)
    found = [
        sign_flip_p([draws.normal(0.0, 0.05, 20) for _ in range(4)], resamples=1000, seed=number)
        for number in range(300)
    ]
    assert np.mean(np.asarray(found) <= 0.025) <= 0.05


def test_a_margin_moves_the_hypothesis_and_not_the_figures() -> None:
    """Non-inferiority asks of the same differences whether they lie above the negative margin."""
    strata = [np.asarray([0.004, -0.006, 0.001, -0.003, 0.002, -0.001] * 4)]
    plain, with_margin = (compare(strata, margin=margin, level=0.05, resamples=2000, seed=1) for margin in (0.0, 0.01))
    assert plain.mean == with_margin.mean
    assert plain.p_value > 0.2
    assert with_margin.p_value < 0.01


def test_the_same_seed_gives_the_same_figures() -> None:
    """Reports can be compared byte for byte."""
    strata = [np.linspace(0.0, 1.0, 20)]
    assert estimate(strata, level=0.05, resamples=1000, seed=5) == estimate(strata, level=0.05, resamples=1000, seed=5)
    mean, middle = estimate(strata, level=0.05, resamples=1000, seed=5)
    assert mean.low < mean.value < mean.high
    assert middle.value == pytest.approx(0.5)
