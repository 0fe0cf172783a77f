"""Queries behind Karn's breaker: what opens it, what cannot, and what it still answers while it is open."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from esper.core.approvals import Approvals
from esper.core.clock import ManualClock
from esper.core.errors import BrokerUnavailable
from esper.karn import BlueprintError, BlueprintQuery, BlueprintRefused, KarnQueries, KarnUnavailable, UnknownBlueprint
from esper.leyline import messages as ly
from tests.karn.test_selection import KARN, withdrawn

BAD_QUERIES = [
    BlueprintQuery(blueprint_id="BP999"),
    BlueprintQuery(blueprint_id=""" x'; drop table""" * 100),
    BlueprintQuery(blueprint_id="BP901", parameters={"depth": 1.0}),
    BlueprintQuery(blueprint_id="BP901", parameters={"": float("nan")}),
    BlueprintQuery(blueprint_id="BP901", layout="map9d"),
    BlueprintQuery(blueprint_id="BP913"),
    BlueprintQuery(blueprint_id="BP915"),
    BlueprintQuery(tier="EXPERIMENTAL", context="x"),
    BlueprintQuery(tier="NO_SUCH_TIER"),
    BlueprintQuery(layout="no such layout"),
    BlueprintQuery(context="\ud800"),
    BlueprintQuery(blueprint_id="\ud800"),
    BlueprintQuery(blueprint_id="BP901", tier="EXPERIMENTAL"),
    BlueprintQuery(blueprint_id="BP901", parameters={"depth": 10**5000}),
    BlueprintQuery(blueprint_id="BP901", parameters={"depth": 1.0, 5: 1.0}),  # type: ignore[dict-item]  # the fault
    BlueprintQuery(blueprint_id="BP901", parameters=[1.0]),  # type: ignore[arg-type]  # the fault
    BlueprintQuery(blueprint_id=["x"]),  # type: ignore[arg-type]  # the fault
    BlueprintQuery(blueprint_id=5),  # type: ignore[arg-type]  # the fault
    BlueprintQuery(context=b"x"),  # type: ignore[arg-type]  # the fault
    BlueprintQuery(tier=["SAFE"]),  # type: ignore[arg-type]  # the fault
    BlueprintQuery(layout={}),  # type: ignore[arg-type]  # the fault
    BlueprintQuery(adversarial="yes"),  # type: ignore[arg-type]  # the fault
]


@dataclass
class Log:
    """Where approvals are read from: answers, or fails as a broker that went away."""

    approvals: Approvals = field(default_factory=KARN.approvals)
    away: bool = False
    reads: int = 0

    def __call__(self) -> Approvals:
        """Return the approvals; raise while it is away."""
        self.reads += 1
        if self.away:
            raise BrokerUnavailable("no broker answered")
        return self.approvals


@dataclass
class Desk:
    """Queries over a log and a clock that the test moves."""

    log: Log = field(default_factory=Log)
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        self.queries = KarnQueries(KARN, self.log, clock=self.clock)

    def ask(self, **query: object) -> str:
        """Return the id of the blueprint that answers."""
        return self.queries.handle_query(BlueprintQuery(**query)).blueprint_id  # type: ignore[arg-type]  # spread

    def fail(self, times: int) -> None:
        """Ask while the log is away."""
        self.log.away = True
        for _ in range(times):
            with pytest.raises(KarnUnavailable):
                self.ask()
        self.log.away = False

    def metric(self, name: str) -> float:
        """Return a counter or gauge of `karn.*`."""
        return self.queries.metrics.value(f"karn.{name}")


def test_bad_input_opens_no_breaker() -> None:
    """Goal: three bad queries of one caller must not deny everybody (the predecessor's defect). Method: 50 times
    each kind of bad query, each refused as what it is; then a good one is answered.
    """
    desk, count = Desk(), 50 * len(BAD_QUERIES)
    for query in BAD_QUERIES * 50:
        with pytest.raises(BlueprintError):
            desk.queries.handle_query(query)
    assert desk.queries.breaker_state() == ly.CIRCUIT_STATE_CLOSED
    assert desk.ask(context="x") == KARN.select("x").blueprint_id
    assert (desk.metric("requests.total"), desk.metric("requests.failed")) == (count + 1, count)
    assert desk.metric("breaker.open_total") == desk.metric("breaker.denied") == 0.0


def test_answers_are_of_the_kind_that_the_fault_is() -> None:
    """Goal: a caller can tell what is wrong. Method: the type of error of each kind of bad query."""
    desk = Desk()
    with pytest.raises(UnknownBlueprint, match="BP999"):
        desk.ask(blueprint_id="BP999")
    with pytest.raises(BlueprintRefused, match="approval_required"):
        desk.ask(blueprint_id="BP913")
    assert desk.ask(blueprint_id="BP913", adversarial=True) == "BP913"
    assert desk.ask(tier="HIGH_RISK", adversarial=True, context="x") in {"BP915", "BP916"}


def test_three_faults_of_its_own_open_it_for_thirty_seconds() -> None:
    """Goal: 3 failures, 30 s, one probe, 1 success closes. Method: let the log fail, and move the clock."""
    desk = Desk()
    desk.ask()
    desk.fail(2)
    desk.ask()
    desk.fail(2)
    assert desk.queries.breaker_state() == ly.CIRCUIT_STATE_CLOSED, "a success forgets the failures before it"
    desk.fail(1)
    assert desk.queries.breaker_state() == ly.CIRCUIT_STATE_OPEN
    assert desk.metric("breaker.open_total") == 1.0
    reads = desk.log.reads
    desk.clock.advance(29.9)
    desk.ask()
    assert desk.log.reads == reads, "an open breaker asks nobody"
    desk.clock.advance(0.2)
    assert desk.queries.breaker_state() == ly.CIRCUIT_STATE_HALF_OPEN
    desk.fail(1)
    assert desk.queries.breaker_state() == ly.CIRCUIT_STATE_OPEN, "a probe that fails opens it again"
    desk.clock.advance(30.1)
    desk.ask()
    assert desk.queries.breaker_state() == ly.CIRCUIT_STATE_CLOSED
    assert desk.metric("breaker.state") == ly.CIRCUIT_STATE_CLOSED


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_interrupted_probe_leaves_the_way_free(interrupt: type[BaseException]) -> None:
    """Goal: an interrupt shows nothing of Karn, and must not deny everybody for ever after. Method: interrupt the
    probe, and calls of a closed breaker; the next query probes, and closes it.
    """
    desk = Desk()
    raising: list[type[BaseException]] = []

    def read() -> Approvals:
        if raising:
            raise raising[0]("by a person")
        return desk.log()

    queries = KarnQueries(KARN, read, clock=desk.clock)
    desk.queries = queries
    desk.fail(3)
    desk.clock.advance(30.0)
    raising.append(interrupt)
    for _ in range(2):
        with pytest.raises(interrupt):
            queries.handle_query(BlueprintQuery())
        assert queries.breaker_state() == ly.CIRCUIT_STATE_HALF_OPEN
    raising.clear()
    assert desk.ask(blueprint_id="BP911") == "BP911", "not of the conservative set: the breaker lets it pass"
    assert queries.breaker_state() == ly.CIRCUIT_STATE_CLOSED
    raising.append(interrupt)
    for _ in range(4):
        with pytest.raises(interrupt):
            queries.handle_query(BlueprintQuery())
    assert queries.breaker_state() == ly.CIRCUIT_STATE_CLOSED


def test_tier_holds_for_a_certain_blueprint_too() -> None:
    """Goal: who asks for a SAFE one gets no other. Method: a hazard by its id, with each tier and with none."""
    desk = Desk()
    with pytest.raises(BlueprintError, match="of tier HIGH_RISK, and one of tier 'SAFE'"):
        desk.ask(blueprint_id="BP915", tier="SAFE", adversarial=True)
    for tier in ({}, {"tier": None}, {"tier": "HIGH_RISK"}):
        assert desk.ask(blueprint_id="BP915", adversarial=True, **tier) == "BP915"
    assert {KARN.get(desk.ask(context=str(number))).tier for number in range(50)} == {"SAFE"}


def test_bad_input_closes_no_open_breaker_either() -> None:
    """Goal: only what Karn could read proves that it can. Method: bad queries while open, and as the probe."""
    desk = Desk()
    desk.ask()
    desk.fail(3)
    for query in BAD_QUERIES:
        with pytest.raises((BlueprintError, KarnUnavailable)):
            desk.queries.handle_query(query)
    assert desk.queries.breaker_state() == ly.CIRCUIT_STATE_OPEN
    desk.clock.advance(30.0)
    with pytest.raises(UnknownBlueprint):
        desk.ask(blueprint_id="BP999")
    assert desk.queries.breaker_state() == ly.CIRCUIT_STATE_CLOSED, "the log was read, which is what the probe shows"


def test_open_it_answers_conservatively_from_what_it_read_last() -> None:
    """Goal: conservative mode instead of silence. Method: withdraw one, open the breaker, ask for both kinds."""
    desk = Desk(Log(withdrawn("BP902")))
    desk.ask()
    desk.fail(3)
    answers = {desk.ask(context=f"context {number}") for number in range(200)}
    assert answers == {f"BP{number}" for number in range(901, 911)} - {"BP902"}
    assert desk.ask(blueprint_id="BP905") == "BP905"
    with pytest.raises(BlueprintRefused, match="withdrawn"):
        desk.ask(blueprint_id="BP902")
    denied = [{"blueprint_id": "BP911"}, {"tier": "EXPERIMENTAL"}, {"tier": None, "adversarial": True}]
    for query in denied:
        with pytest.raises(KarnUnavailable, match=r"breaker is open.*30 seconds"):
            desk.ask(**query)
    assert desk.metric("breaker.denied") == float(len(denied))


def test_never_read_it_denies_everything() -> None:
    """Goal: missing evidence blocks. Method: open the breaker of a Karn that never saw the log."""
    desk = Desk()
    desk.fail(3)
    with pytest.raises(KarnUnavailable):
        desk.ask()
    assert desk.metric("breaker.denied") == 1.0


def test_any_fault_of_its_own_counts() -> None:
    """Goal: a bug counts like a broker that is away, and is not taken for the caller's. Method: raise TypeError."""

    def broken() -> Approvals:
        raise TypeError("a bug")

    queries = KarnQueries(KARN, broken, clock=ManualClock())
    for _ in range(3):
        with pytest.raises(KarnUnavailable, match="a bug"):
            queries.handle_query(BlueprintQuery())
    assert queries.breaker_state() == ly.CIRCUIT_STATE_OPEN


def test_what_was_selected_is_counted_by_tier() -> None:
    """Goal: `karn.selection.*` of the brief. Method: one query of each tier, and read the counters and the latency."""
    desk = Desk()
    desk.ask()
    desk.ask(blueprint_id="BP913", adversarial=True)
    desk.ask(blueprint_id="BP915", adversarial=True)
    assert [desk.metric(f"selection.{kind}") for kind in ("safe", "experimental", "adversarial")] == [1.0, 1.0, 1.0]
    points = desk.queries.metrics.points()
    assert {point.attributes["quantile"] for point in points if point.name == "karn.selection.latency_ms"} == {
        "0.5",
        "0.95",
        "0.99",
    }
