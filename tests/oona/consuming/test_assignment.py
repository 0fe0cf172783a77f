"""Where a group begins: at what it committed, else at the first record, and never past lost history."""

from __future__ import annotations

import pytest

from esper.core.errors import IntegrityError
from esper.oona.consuming._assignment import start_offset


@pytest.mark.parametrize(
    ("committed", "low", "high", "truth", "start"),
    [
        (None, 0, 0, True, 0),
        (None, 0, 9, True, 0),
        (4, 0, 9, True, 4),
        (9, 0, 9, True, 9),
        (None, 3, 9, False, 3),
        (1, 3, 9, False, 3),
        (5, 5, 9, True, 5),
    ],
)
def test_start(committed: int | None, low: int, high: int, truth: bool, start: int) -> None:
    """A group reads everything once: decide for new and old groups, whole topics and expired telemetry."""
    assert start_offset("runs-0", committed, low=low, high=high, truth=truth) == start


@pytest.mark.parametrize(
    ("committed", "low", "high", "cause"),
    [
        (None, 3, 9, "records before offset 3 are gone"),
        (1, 3, 9, "records before offset 3 are gone"),
        (10, 0, 9, "up to offset 10, the log now ends at 9"),
    ],
)
def test_lost_history_of_a_truth_topic_stops_the_group(committed: int | None, low: int, high: int, cause: str) -> None:
    """What is gone must not be skipped in silence: decide where records are missing on either side."""
    with pytest.raises(IntegrityError, match=cause):
        start_offset("runs-0", committed, low=low, high=high, truth=True)
