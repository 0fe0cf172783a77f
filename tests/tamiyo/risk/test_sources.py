"""Where the gate's surroundings come from: a catalogue that is cached, behind a breaker, and never in the way."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pytest

from esper.core import approvals
from esper.core.approvals import Approvals
from esper.core.breaker import CircuitBreaker
from esper.core.clock import ManualClock
from esper.core.errors import NotReadyError
from esper.karn import catalogue
from esper.leyline import messages as ly
from esper.tamiyo.risk import Alarm, RiskSources


@dataclass
class Board:
    """A board whose topic can be away."""

    said: Approvals
    away: bool = False
    asked: int = 0

    def latest(self) -> Approvals:
        """Return what is said, or fail as a reader whose broker is gone."""
        self.asked += 1
        if self.away:
            raise NotReadyError("the topic cannot be read", cause="a test", next_step="wait")
        return self.said

    def close(self) -> None:
        """Hold nothing."""


def shipped() -> Approvals:
    """Return what holds once Karn has registered its catalogue."""
    return approvals.registered(blueprint.descriptor() for blueprint in catalogue().values())


def test_the_catalogue_says_risk_and_refusal() -> None:
    """Karn's own fifty: what may be grafted, what waits for a person, what never leaves quarantine."""
    looked = RiskSources(Board(shipped()), lambda: (Alarm("e", "o", "r"),), clock=ManualClock()).look()
    assert looked.catalogue_known
    assert [alarm.event_id for alarm in looked.alarms] == ["e"]
    assert looked.blueprints["BP021"].risk == pytest.approx(0.5)
    assert looked.blueprints["BP021"].refusal == ""
    assert looked.blueprints["BP038"].refusal == "approval_required"
    assert looked.blueprints["BP045"].refusal == "quarantine_only"
    assert "BP021" not in looked.refused
    assert {"BP038", "BP045"} <= looked.refused


def test_what_somebody_spoke_of_and_nobody_registered_is_not_judged() -> None:
    """A word about an unknown blueprint says nothing about whether it exists: that is the makers' to say."""
    said = approvals.fold({}, ly.BlueprintApproved(blueprint_id="BP999", approved_by="ann"))
    assert RiskSources(Board(said), tuple, clock=ManualClock()).look().blueprints == {}


def test_a_catalogue_that_goes_away_is_gone_by_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    """Three failures open the breaker: nobody asks until it lets a probe pass, and what was read stays believed."""
    clock, board = ManualClock(), Board(shipped())
    sources = RiskSources(board, tuple, clock=clock, breaker=CircuitBreaker(failures_max=3, open_seconds=30.0))
    known = sources.look()
    board.away = True
    with caplog.at_level(logging.WARNING, logger="esper.tamiyo"):
        for _ in range(10):
            assert sources.look() == known
    assert board.asked == 1 + 3
    assert "what was read of it last" in caplog.text
    assert sources.breaker_state() == ly.CIRCUIT_STATE_OPEN
    clock.sleep(30.0)
    board.away, board.said = False, {}
    assert sources.look().blueprints == {}
    assert sources.breaker_state() == ly.CIRCUIT_STATE_CLOSED


def test_a_catalogue_that_was_never_read_is_not_an_empty_one() -> None:
    """An empty topic is knowledge, a topic that nobody could read is not."""
    board = Board({}, away=True)
    sources = RiskSources(board, tuple, clock=ManualClock())
    assert not sources.look().catalogue_known
    board.away = False
    assert sources.look().catalogue_known
