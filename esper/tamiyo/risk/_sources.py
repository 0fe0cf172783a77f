"""Where the gate gets its surroundings from: blueprints behind a cache and a breaker, and emergencies in force.

Nothing here stops a decision. A catalogue that cannot be read is asked again when its breaker lets a probe pass, and
until then it is what was read of it last; where that is nothing, the gate knows that nothing is known.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol, Self

from esper.core.approvals import Approvals
from esper.core.breaker import CircuitBreaker
from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import EsperError
from esper.leyline import messages as ly
from esper.oona import BlueprintBoard, Fabric
from esper.tamiyo.risk._surroundings import Alarm, BlueprintFacts, Surroundings, blueprint_facts

_logger = logging.getLogger("esper.tamiyo")


class Board(Protocol):
    """What the log says of blueprints; `BlueprintBoard` is one."""

    def latest(self) -> Approvals:
        """Return the approvals as far as they have arrived; raises an EsperError where they cannot be read."""

    def close(self) -> None:
        """Release what it holds."""


class RiskSources:
    """Everything that the gate is told from outside, as it is at the moment of asking; one thread at a time."""

    def __init__(
        self,
        board: Board,
        alarms: Callable[[], tuple[Alarm, ...]],
        *,
        clock: Clock = SYSTEM_CLOCK,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self._board = board
        self._alarms = alarms
        self._clock = clock
        #: When the board is asked again; it changes nothing about what is believed of a blueprint.
        self._breaker = breaker or CircuitBreaker()
        self._said: Approvals | None = None
        self._facts: Mapping[str, BlueprintFacts] = {}

    @classmethod
    def over(cls, fabric: Fabric, *, clock: Clock = SYSTEM_CLOCK) -> Self:
        """Return the sources on a fabric: its topic `blueprints`, and its watch over emergencies."""
        watch = fabric.emergencies

        def alarms() -> tuple[Alarm, ...]:
            watch.await_following()
            return tuple(Alarm(held.event_id, held.origin, held.reason, held.run_id) for held in watch.calls())

        return cls(BlueprintBoard(fabric), alarms, clock=clock)

    def look(self) -> Surroundings:
        """Return what is known now; never raises for a catalogue that cannot be read.

        Raises:
            BrokerUnavailable, EsperError: the emergencies cannot be heard, before which nothing is to be decided.
        """
        self._read_catalogue()
        return Surroundings(self._facts, catalogue_known=self._said is not None, alarms=self._alarms())

    def breaker_state(self) -> ly.CircuitBreakerState:
        """Return how the breaker of the catalogue stands."""
        return self._breaker.state(self._clock.monotonic())

    def close(self) -> None:
        """Release the connection of the catalogue."""
        self._board.close()

    def _read_catalogue(self) -> None:
        now = self._clock.monotonic()
        if not self._breaker.allows(now):
            return
        self._breaker = self._breaker.began(now)
        try:
            said = self._board.latest()
        except EsperError as error:
            self._breaker = self._breaker.failed(self._clock.monotonic())
            known = "what was read of it last is gone by" if self._said is not None else "nothing germinates meanwhile"
            _logger.warning("the catalogue of blueprints cannot be read, %s: %s", known, error)
            return
        self._breaker = self._breaker.succeeded()
        if said is not self._said:  # The fold returns the same mapping while nothing new is said.
            self._said, self._facts = said, blueprint_facts(said)
