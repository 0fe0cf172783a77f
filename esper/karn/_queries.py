"""Queries for a blueprint, behind a breaker that only Karn's own faults can open.

A bad parameter, an unknown id or a refused blueprint is an answer: the caller's input is at fault, so nobody else is
denied anything for it. What counts is that Karn could not find out what may be used. Three such faults in a row open
the breaker for 30 seconds; then one query probes. While it is open Karn is conservative: from what it read last it
answers with the first ten SAFE blueprints, and denies the rest.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from esper.core.approvals import Approvals
from esper.core.breaker import CircuitBreaker
from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import UsageError
from esper.core.text import shown
from esper.karn._blueprint import Blueprint
from esper.karn._catalog import KarnCatalog
from esper.karn._errors import BlueprintError, KarnUnavailable, UnsupportedLayout
from esper.karn._telemetry import (
    BREAKER_DENIED,
    BREAKER_OPENED,
    BREAKER_STATE,
    REQUESTS,
    REQUESTS_FAILED,
    SELECTED,
    SELECTION_LATENCY,
    karn_metrics,
)
from esper.leyline import messages as ly
from esper.oona import MemberMetrics

_logger = logging.getLogger("esper.karn")

FAILURES_MAX: Final = 3
OPEN_SECONDS: Final = 30.0


@dataclass(frozen=True)
class BlueprintQuery:
    """What somebody wants of Karn: a certain blueprint, or one that is selected."""

    #: Empty: one is selected.
    blueprint_id: str = ""
    #: What the selection is decided by; a certain blueprint needs none.
    context: str = ""
    #: Empty: SAFE for a selection, and for a certain blueprint that which it has. None: any, as far as it may be used.
    tier: str | None = ""
    layout: str | None = None
    #: To be checked against the blueprint's bounds; None: they are not known yet.
    parameters: Mapping[str, float] | None = None
    #: Whether what is found is only to run in quarantine: HIGH_RISK comes into question, an approval is not needed.
    adversarial: bool = False


class KarnQueries:
    """Answers queries from a catalogue and from what the log says may be used; thread-safe.

    `read_approvals` returns the approvals as the log has them, and may raise what it likes: that is a fault of
    Karn's. By default no log is asked.
    """

    def __init__(
        self,
        catalog: KarnCatalog,
        read_approvals: Callable[[], Approvals] | None = None,
        *,
        metrics: MemberMetrics | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.metrics = metrics or karn_metrics()
        self._catalog = catalog
        self._read_approvals = read_approvals or catalog.approvals
        self._clock = clock
        self._breaker = CircuitBreaker(failures_max=FAILURES_MAX, open_seconds=OPEN_SECONDS)
        self._last: Approvals | None = None
        self._lock = threading.Lock()

    def breaker_state(self) -> ly.CircuitBreakerState:
        """Return CLOSED, OPEN or HALF_OPEN."""
        return self._breaker.state(self._clock.monotonic())

    def handle_query(self, query: BlueprintQuery) -> Blueprint:
        """Return the blueprint that answers the query and may be used as it says.

        Raises:
            BlueprintError: the query cannot be answered; asking again changes nothing.
            KarnUnavailable: Karn could not find out what may be used, or its breaker is open.
        """
        began = self._clock.monotonic()
        self.metrics.count(REQUESTS)
        try:
            _check_types(query)
            with self._lock:
                blueprint = self._answer(query)
        except (UsageError, KarnUnavailable):
            self.metrics.count(REQUESTS_FAILED)
            raise
        finally:
            self.metrics.gauge(BREAKER_STATE, self.breaker_state())
            self.metrics.observe(SELECTION_LATENCY, self._clock.monotonic() - began)
        self.metrics.count(SELECTED[blueprint.tier])
        return blueprint

    def _answer(self, query: BlueprintQuery) -> Blueprint:
        now = self._clock.monotonic()
        if not self._breaker.allows(now):
            return self._conservative_answer(query)
        before = self._breaker
        self._breaker = before.began(now)
        try:
            self._last = self._read_approvals()
        except Exception as error:  # whatever it was, it is Karn's fault and not the caller's
            self._failed(error)
            raise KarnUnavailable(
                "Karn does not know what may be used",
                cause=str(error),
                next_step="try again; `esper doctor` tells more",
            ) from error
        except BaseException:
            # Interrupted, it showed nothing of Karn: the next query is asked as this one would have been.
            self._breaker = before
            raise
        self._breaker = self._breaker.succeeded()
        return self._find(query, self._last, conservative=False)

    def _failed(self, error: Exception) -> None:
        self._breaker = self._breaker.failed(self._clock.monotonic())
        if self.breaker_state() == ly.CIRCUIT_STATE_OPEN:
            self.metrics.count(BREAKER_OPENED)
            self.metrics.event(f"the breaker opened: {error}"[:500], level=ly.TELEMETRY_LEVEL_ERROR)
            _logger.error("the breaker opened for %g s: %s", OPEN_SECONDS, error)

    def _conservative_answer(self, query: BlueprintQuery) -> Blueprint:
        """Answer from what was read last with what is harmless; deny what is not."""
        harmless = query.tier in (None, "", "SAFE") and not query.adversarial
        if query.blueprint_id:
            harmless = query.blueprint_id in self._catalog.conservative_ids()
        if self._last is None or not harmless:
            self.metrics.count(BREAKER_DENIED)
            wait = self._breaker.seconds_until_probe(self._clock.monotonic())
            raise KarnUnavailable(
                "Karn denies the query",
                cause="its breaker is open, and it answers with the conservative set only",
                next_step=f"try again in {wait:.0f} seconds",
            )
        return self._find(query, self._last, conservative=True)

    def _find(self, query: BlueprintQuery, approvals: Approvals, *, conservative: bool) -> Blueprint:
        if query.blueprint_id:
            found = self._catalog.allowed(query.blueprint_id, approvals, quarantine=query.adversarial)
            if query.tier not in (None, "", found.tier):
                raise BlueprintError(
                    f"{found} is not what was asked for",
                    cause=f"it is of tier {found.tier}, and one of tier {shown(query.tier)} was wanted",
                    next_step="ask for its own tier, or for none",
                )
            if query.layout not in (None, *found.layouts):
                raise UnsupportedLayout(
                    f"{found} cannot be built for layout {shown(query.layout)}",
                    cause=f"it has a body for {', '.join(found.layouts)}",
                    next_step="choose a blueprint that lists the layout",
                )
        else:
            found = self._catalog.select(
                query.context,
                tier="SAFE" if query.tier == "" else query.tier,
                layout=query.layout,
                adversarial=query.adversarial,
                conservative=conservative,
                approvals=approvals,
            )
        if query.parameters is not None:
            found.check(query.parameters)
        return found


def _check_types(query: BlueprintQuery) -> None:
    """Refuse what is no query, before anything is asked for it.

    Raises:
        BlueprintError: a field is of another type than it says.
    """
    parameters = query.parameters
    fields: dict[str, tuple[object, bool]] = {
        "blueprint_id": (query.blueprint_id, isinstance(query.blueprint_id, str)),
        "context": (query.context, isinstance(query.context, str)),
        "tier": (query.tier, query.tier is None or isinstance(query.tier, str)),
        "layout": (query.layout, query.layout is None or isinstance(query.layout, str)),
        "parameters": (parameters, parameters is None or isinstance(parameters, Mapping)),
        "adversarial": (query.adversarial, isinstance(query.adversarial, bool)),
    }
    for name, (value, right) in fields.items():
        if not right:
            raise BlueprintError(
                f"a query's {name} cannot be {shown(value)}",
                cause="it is of another type",
                next_step="esper.karn.BlueprintQuery says which",
            )
