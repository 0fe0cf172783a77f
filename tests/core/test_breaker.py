"""The circuit breaker as a value."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from esper.core.breaker import CircuitBreaker
from esper.leyline import messages as ly


def failing(breaker: CircuitBreaker, times: int, now: float = 0.0) -> CircuitBreaker:
    """Return the breaker after so many failures at one moment."""
    for _ in range(times):
        breaker = breaker.failed(now)
    return breaker


def test_it_opens_after_failures_in_a_row_only() -> None:
    """Goal: a success between failures starts the count anew. Method: two, a success, two, one more."""
    breaker = failing(failing(CircuitBreaker(), 2).succeeded(), 2)
    assert breaker.allows(0.0)
    breaker = breaker.failed(0.0)
    assert breaker.state(0.0) == ly.CIRCUIT_STATE_OPEN
    assert not breaker.allows(29.9)
    assert breaker.seconds_until_probe(10.0) == 20.0


def test_one_probe_decides() -> None:
    """Goal: half-open lets one call pass. Method: open, wait, probe once; fail it, then let another succeed."""
    breaker = failing(CircuitBreaker(), 3)
    assert breaker.state(30.0) == ly.CIRCUIT_STATE_HALF_OPEN
    probing = breaker.began(30.0)
    assert not probing.allows(31.0)
    reopened = probing.failed(31.0)
    assert reopened.state(60.9) == ly.CIRCUIT_STATE_OPEN
    closed = reopened.began(61.0).succeeded()
    assert closed.state(61.0) == ly.CIRCUIT_STATE_CLOSED
    assert closed.seconds_until_probe(61.0) == 0.0
    assert closed.allows(61.0)


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 100.0)), max_size=50))
def test_it_never_stays_open_for_good(calls: list[tuple[bool, float]]) -> None:
    """Goal: whatever happened, it recovers. Method: random calls; after the open time a probe that works closes it."""
    breaker, now = CircuitBreaker(), 0.0
    for works, later in calls:
        now += later
        if breaker.allows(now):
            breaker = breaker.began(now)
            breaker = breaker.succeeded() if works else breaker.failed(now)
    now += breaker.open_seconds + 1e-6  # floats: the sum may fall short of the time by a bit
    assert breaker.allows(now)
    assert breaker.began(now).succeeded().state(now) == ly.CIRCUIT_STATE_CLOSED
