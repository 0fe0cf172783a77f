"""How long things take: a histogram of fixed size whose quantiles are good to a fifth."""

from __future__ import annotations

import math
from typing import Final

#: Buckets for each doubling; a quantile is at most 2 ** (1/4) above the truth.
_BUCKETS_PER_DOUBLING: Final = 4
_MICROSECONDS: Final = 1e6
#: 2 ** 36 microseconds are 19 hours; what takes longer counts as that.
_BUCKETS: Final = 36 * _BUCKETS_PER_DOUBLING


class LatencyHistogram:
    """Counts durations by their logarithm, in constant memory.

    Observed by one thread or many, read by any: a count that two threads raise at once may be lost, which
    moves no quantile.
    """

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self._observed = 0

    @property
    def observed(self) -> int:
        """How many durations were observed."""
        return self._observed

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        microseconds = seconds * _MICROSECONDS
        index = 0 if microseconds <= 1.0 else int(_BUCKETS_PER_DOUBLING * math.log2(microseconds))
        self._counts[index if index < _BUCKETS else _BUCKETS - 1] += 1
        self._observed += 1

    def add(self, other: LatencyHistogram) -> None:
        """Count everything that `other` counted."""
        self._counts = [mine + theirs for mine, theirs in zip(self._counts, other._counts, strict=True)]
        self._observed += other._observed

    def quantile_seconds(self, quantile: float) -> float:
        """Return an upper bound of the given quantile (0..1), in seconds; 0.0 when nothing was observed."""
        counts = list(self._counts)
        wanted = math.ceil(quantile * sum(counts))
        seen = 0
        for index, count in enumerate(counts):
            seen += count
            if count and seen >= wanted:
                return float(2.0 ** ((index + 1) / _BUCKETS_PER_DOUBLING)) / _MICROSECONDS
        return 0.0
