"""How often something is done again."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from esper.core.clock import ManualClock
from esper.core.pacing import Pace

FIRST, MOST = 1.0, 8.0


def paced(clock: ManualClock) -> Pace:
    return Pace(first_seconds=FIRST, most_seconds=MOST, clock=clock)


def test_waits_double_up_to_the_longest() -> None:
    """Goal: at once, then ever more seldom. Method: ask every 10 ms for 100 seconds; look at the waits between."""
    clock, done = ManualClock(), list[float]()
    pace = paced(clock)
    for _ in range(10_000):
        if pace.may():
            done.append(clock.monotonic())
        clock.advance(0.01)
    waits = [later - earlier for earlier, later in itertools.pairwise(done)]
    assert done[0] == 0.0
    for wait, longest in zip(waits, [1.0, 2.0, 4.0, *[MOST] * len(waits)], strict=False):
        assert longest / 2 - 0.011 <= wait <= longest + 0.011
    assert len(set(waits[3:])) > 1, "with jitter"


def test_what_rested_starts_anew() -> None:
    """Goal: one outage a day is met at once, and the next again. Method: tire it, leave it alone, ask twice."""
    clock = ManualClock()
    pace = paced(clock)
    for _ in range(2_000):
        pace.may()
        clock.advance(0.01)
    clock.advance(2 * MOST + 0.1)
    assert pace.may()
    clock.advance(FIRST)
    assert pace.may(), "the wait is the first one again"


@given(st.lists(st.floats(0.0, 20.0), min_size=1, max_size=300))
def test_no_order_of_asking_gets_more(gaps: list[float]) -> None:
    """Goal: the bound that is promised. Method: random moments of asking, and the count in every stretch of time."""
    clock, done = ManualClock(), list[float]()
    pace = paced(clock)
    for gap in gaps:
        clock.advance(gap)
        if pace.may():
            done.append(clock.monotonic())
    start = 2 + math.log2(MOST / FIRST)
    for at in range(len(done)):
        for until in range(at, len(done)):
            assert until - at + 1 <= start + 3.0 * (done[until] - done[at]) / MOST
