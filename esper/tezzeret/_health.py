"""How the forge is: a breaker over jobs, and the strategy that follows from it."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

from esper.core.breaker import CircuitBreaker
from esper.core.clock import Clock
from esper.tezzeret._faults import passes
from esper.tezzeret._jobs import Strategy
from esper.tezzeret._metrics import ForgeMetrics

_logger = logging.getLogger("esper.tezzeret")


class ForgeHealth:
    """Opens after faults of `failures_max` jobs in a row, probes with a whole job after `open_seconds`.

    Only faults of the forge's own work count: a request that asks for what cannot be had says nothing of it.
    """

    def __init__(self, *, failures_max: int, open_seconds: float, metrics: ForgeMetrics, clock: Clock) -> None:
        self._breaker = CircuitBreaker(failures_max=failures_max, open_seconds=open_seconds)
        self._metrics = metrics
        self._clock = clock
        #: Set while the forge is conservative, for other threads to see.
        self.conservative = threading.Event()

    @property
    def failures(self) -> int:
        """Jobs in a row that ended in a fault."""
        return self._breaker.failures

    def begin(self) -> Strategy:
        """Return how the next job is to be done; `end` must follow."""
        now = self._clock.monotonic()
        if not self._breaker.allows(now):
            self._tell(Strategy.CONSERVATIVE)
            return Strategy.CONSERVATIVE
        self._breaker = self._breaker.began(now)
        return Strategy.STANDARD

    def end(self, strategy: Strategy, error: BaseException | None) -> None:
        """Take note of how a job went: `error` is what hindered it, if anything did."""
        if strategy is Strategy.CONSERVATIVE:
            return
        now, before = self._clock.monotonic(), self._breaker
        if error is None:
            self._breaker = before.succeeded()
        elif passes(error):
            self._breaker = before.failed(now)
        else:
            self._breaker = replace(before, probing=False)
        closed, was_closed = self._breaker.opened_at is None, before.opened_at is None
        if closed != was_closed:
            _logger.warning("the forge is %s", "itself again" if closed else f"conservative: {error}")
            self._metrics.event("breaker closed" if closed else "breaker opened", cause=str(error)[:200])
        self._tell(Strategy.STANDARD if closed else Strategy.CONSERVATIVE)

    def _tell(self, strategy: Strategy) -> None:
        if strategy is Strategy.CONSERVATIVE:
            self.conservative.set()
        else:
            self.conservative.clear()
        self._metrics.breaker(self._breaker.state(self._clock.monotonic()), strategy)
