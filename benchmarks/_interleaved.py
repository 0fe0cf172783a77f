"""Timing arms side by side: in turns, in an order drawn anew each round, each round a pair of every two arms."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

_RESAMPLES: Final = 2_000


class Timed(Protocol):
    """What can be timed: `steps(count)` comes back when all of it is done."""

    def steps(self, count: int) -> None:
        """Take `count` steps and wait for them."""


@dataclass(frozen=True)
class Ratio:
    """The median over rounds of one arm's time over another's, with its 95 % bootstrap interval (Efron, 1979)."""

    median: float
    low: float
    high: float
    #: Median milliseconds a step of the two arms.
    milliseconds: float
    peer_milliseconds: float


def interleaved(
    arms: Mapping[str, Timed], *, rounds: int, steps: int, warm_up: int = 1
) -> dict[str, NDArray[np.float64]]:
    """Return milliseconds a step of every arm in every round; the first `warm_up` rounds are not among them."""
    order, chooser = list(arms), random.Random(0)  # noqa: S311 - an order, no secret
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + warm_up):
        chooser.shuffle(order)
        for name in order:
            began = time.perf_counter()
            arms[name].steps(steps)
            if number >= warm_up:
                taken[name].append((time.perf_counter() - began) * 1000 / steps)
    return {name: np.asarray(values) for name, values in taken.items()}


def ratio(times: Mapping[str, NDArray[np.float64]], name: str, peer: str) -> Ratio:
    """Return how much longer `name` took than `peer`, round by round."""
    ratios = times[name] / times[peer]
    picks = np.random.default_rng(0).integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
    return Ratio(
        median=float(np.median(ratios)),
        low=float(low),
        high=float(high),
        milliseconds=float(np.median(times[name])),
        peer_milliseconds=float(np.median(times[peer])),
    )


def detail(found: Ratio) -> dict[str, Any]:
    """Return a ratio for the details of a report."""
    return {
        "median": round(found.median, 4),
        "interval": [round(found.low, 4), round(found.high, 4)],
        "ms": round(found.milliseconds, 3),
        "peer_ms": round(found.peer_milliseconds, 3),
    }
