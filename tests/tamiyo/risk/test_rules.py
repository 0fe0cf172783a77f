"""The gate's rules one by one: what trips each, what does not, and that none latches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline import messages as ly
from esper.tamiyo.risk import Alarm, BlueprintFacts, Surroundings, judge
from esper.tamiyo.risk._rules import (
    WINDOW,
    blueprint,
    compute_budget,
    compute_ratio,
    conservative,
    loss_spike,
    parameter_budget,
    rise,
    stale,
)
from tests.tamiyo.risk.cases import CALM, SPIKE, case, order, overridden, packets, seed

GERMINATE, GRAFT = ly.SEED_OP_GERMINATE, ly.SEED_OP_START_GRAFTING


@pytest.mark.parametrize(
    ("losses", "found"),
    [
        (CALM, None),
        (SPIKE, 1.2 / 0.8 - 1.0),  # the median of the five before it is 0.80
        ((1.0, 0.9, 5.0), None),  # two losses are no evidence
        ((1.0, 0.9, 0.8, math.nan), math.inf),
        ((math.nan, math.inf, 1.0, 0.9, 0.8, 1.2), 1.2 / 0.9 - 1.0),
        ((1.0, 0.5, 0.1, 0.012, 0.01, 0.011, 0.02), None),  # doubled, and a hundredth of where it began
        ((1.0, 1.3, 1.0, 1.3, 1.0, 1.3), None),  # noise as large as the limit that never leaves its band
    ],
)
def test_a_spike_is_a_rise_over_what_was_usual(losses: tuple[float, ...], found: float | None) -> None:
    """The loss is held against the median of five packets and the run's first loss, not against one packet."""
    assert rise(packets(losses), 0.15) == (found if found is None else pytest.approx(found))
    assert rise(packets(losses), 0.0) is None, "a limit of 0 switches the rule off"


@given(st.lists(st.floats(0.01, 10.0), min_size=WINDOW + 1, max_size=30), st.floats(1.2, 50.0))
def test_a_loss_that_stays_up_is_a_spike_once(before: list[float], factor: float) -> None:
    """Nothing latches: whatever went before, a level that lasts is no new height at its second packet."""
    level = max(before) * factor + 1.0
    history = [*before, *[level] * 10]
    spiked = [rise(packets(history[: len(before) + n]), 0.15) is not None for n in range(1, 11)]
    assert spiked[0]
    assert not any(spiked[1:])


def test_only_a_seed_that_is_heard_stands_still() -> None:
    """Seeds that the host does not hear cannot have moved its loss: only a heard one is told to stand still."""
    spiked = case(order(), packets(SPIKE, seeds=[seed()]))
    assert (trip := loss_spike(spiked)) is not None
    assert trip.pauses
    assert "50%" in trip.why
    for unheard in (seed(ly.SEED_STAGE_TRAINING, alpha=0.0), seed(ly.SEED_STAGE_FOSSILIZED, alpha=1.0)):
        trip = loss_spike(case(order(), packets(SPIKE, seeds=[unheard])))
        assert trip is not None
        assert not trip.pauses


def test_a_pause_is_followed_by_as_many_epochs_as_a_trend_takes() -> None:
    """A run whose loss stays up is not paused for ever: after a pause of 2 epochs come 5 without one."""
    first = judge(case(order(), packets(SPIKE, seeds=[seed()]))).command
    assert first is not None
    for epochs_later, pauses in ((2, False), (6, False), (7, True), (20, True)):  # 2 of pause and 5 without one
        history = packets([*[0.5] * (6 + epochs_later), 1.0], seeds=[seed()])
        trip = loss_spike(case(order(), history, earlier=[overridden(7, first)]))
        assert trip is not None
        assert trip.pauses == pauses, f"{epochs_later} epochs after a pause"


def test_where_nothing_can_be_paused_a_spike_is_heeded_as_long() -> None:
    """A stack's members cannot stand still: growth waits for the spike and the rest of a pause's epochs."""
    calm_again = packets([*SPIKE, 0.76])
    assert loss_spike(case(order(), calm_again)) is None
    assert loss_spike(case(order(), calm_again, can_pause=False)) is not None
    assert loss_spike(case(order(), packets([*SPIKE, 0.76, 0.75]), can_pause=False)) is None


# Stale state


def test_a_packet_that_no_longer_shows_its_run_is_stale() -> None:
    """A fenced attempt, missing epochs within the trend's window, and what the caller knows; each by its figures."""
    history = packets(CALM)
    assert stale(case(order(), history)) is None
    fenced = [*history[:-2], replace(history[-2], attempt=2), history[-1]]
    assert (trip := stale(case(order(), fenced))) is not None
    assert "attempt 2" in trip.why
    gap = [*history[:2], *history[3:]]
    assert (trip := stale(case(order(), gap))) is not None
    assert trip.why == "the log has no packet between epochs 2 and 4"
    told = Surroundings(superseded="the run has gone on to epoch 9")
    assert (trip := stale(case(order(), history, surroundings=told))) is not None
    assert "epoch 9" in trip.why


def test_a_gap_is_forgotten_and_a_return_is_none() -> None:
    """Missing epochs count while trends are taken over them; an epoch that follows on an earlier one misses none."""
    history = packets([1.0] * 12)
    assert stale(case(order(), [*history[:2], *history[3:]])) is None
    back = [*history[:2], replace(history[5], follows_epoch=2)]
    assert stale(case(order(), back)) is None


# Conservative mode


def test_a_signal_holds_those_runs_back_that_it_is_about() -> None:
    """One about another run is none; one about all is one about each."""
    for run_id, on in (("", True), ("run-risk", True), ("run-other", False)):
        alarm = Alarm("signal-1", "operator", "smoke", run_id)
        found = conservative(case(order(), packets(CALM), surroundings=Surroundings(alarms=(alarm,))))
        assert (found is not None) == on
    assert conservative(case(order(), packets(CALM))) is None


def test_one_signal_is_heeded_for_ten_epochs_of_a_run() -> None:
    """A signal that nobody takes back releases a run by the run's own decisions; another signal counts anew."""
    alarmed = Surroundings(alarms=(Alarm("signal-1", "operator", "smoke"),))
    history = packets(CALM, seeds=[seed()])
    command = judge(case(order(), history, surroundings=alarmed)).command
    assert command is not None
    assert command.annotations["risk.signals"] == "signal-1"
    earlier = [overridden(6, command), overridden(9, command)]
    for epoch, on in ((15, True), (16, False), (30, False)):
        later = packets([0.5] * epoch, seeds=[seed()])
        assert (conservative(case(order(), later, earlier=earlier, surroundings=alarmed)) is not None) == on
    anew = Surroundings(alarms=(Alarm("signal-2", "operator", "again"),))
    assert conservative(case(order(), packets([0.5] * 30), earlier=earlier, surroundings=anew)) is not None


def test_the_mode_ends_with_the_breaker_and_lasts_where_it_was_asked_for() -> None:
    """What a packet says of Kasmina's breaker holds for that packet; a request's wish for the whole run."""
    history = packets(CALM)
    opened = [*history[:-1], replace(history[-1], breaker_open=True)]
    assert conservative(case(order(), opened)) is not None
    assert conservative(case(order(), [*opened, replace(history[-1], epoch=7)])) is None
    assert conservative(case(order(), history, limits={"conservative": 1.0})) is not None


# Blueprints


@pytest.mark.parametrize(
    ("facts", "limit", "rule"),
    [
        (None, 0.8, ""),
        (BlueprintFacts(0.5), 0.8, ""),
        (BlueprintFacts(0.7999), 0.8, ""),
        (BlueprintFacts(0.800000011920929), 0.8, "blueprint_risk"),  # 0.8 as a float32 carries it
        (BlueprintFacts(0.8), 0.9, ""),
        (BlueprintFacts(1.0), 0.0, ""),
        (BlueprintFacts(math.nan), 0.8, "blueprint_risk"),
        (BlueprintFacts(0.1, "quarantine_only"), 0.0, "blueprint_quarantine"),
        (BlueprintFacts(0.1, "withdrawn"), 0.8, "blueprint_risk"),
    ],
)
def test_blueprints_are_judged_by_what_the_log_says(facts: BlueprintFacts | None, limit: float, rule: str) -> None:
    """Quarantined, refused and risky ones stay off the host, when they germinate and when they are to be grafted."""
    said = Surroundings({} if facts is None else {"BP021": facts})
    history = packets(CALM, seeds=[seed(ly.SEED_STAGE_TRAINING, alpha=0.0)])
    for operation in (GERMINATE, GRAFT):
        trip = blueprint(case(order(operation), history, surroundings=said, limits={"blueprint_max": limit}))
        assert (trip.rule if trip is not None else "") == rule
    for operation in (ly.SEED_OP_EVALUATE, ly.SEED_OP_FOSSILIZE, None):
        assert blueprint(case(order(operation), history, surroundings=said)) is None


def test_a_catalogue_that_nobody_has_read_lets_nothing_germinate() -> None:
    """Missing evidence blocks; a seed that germinated while the catalogue was known goes on."""
    unread = Surroundings(catalogue_known=False)
    history = packets(CALM, seeds=[seed(ly.SEED_STAGE_TRAINING, alpha=0.0)])
    trip = blueprint(case(order(GERMINATE), history, surroundings=unread))
    assert trip is not None
    assert trip.rule == "catalogue_unread"
    assert blueprint(case(order(GRAFT), history, surroundings=unread)) is None


# Budgets


def test_parameters_of_what_joins_the_host_are_counted() -> None:
    """400 parameters and a seed of 3,000: grafting it makes 8.5 times the first, and a further seed is one more."""
    waiting = packets(CALM, seeds=[seed(ly.SEED_STAGE_TRAINING, alpha=0.0)])
    for operation, limit, tripped in (
        (GRAFT, 8.0, True), (GRAFT, 8.5, False), (GERMINATE, 8.5, True), (GERMINATE, 9.0, False),
        (ly.SEED_OP_FOSSILIZE, 1.0, False), (GRAFT, 0.0, False),
    ):  # fmt: skip
        found = parameter_budget(case(order(operation), waiting, limits={"parameters_ratio_max": limit}))
        assert (found is not None) == tripped, (operation, limit)
    heard = [*packets(CALM)[:-1], replace(packets(CALM, seeds=[seed()])[-1], parameters=3_400)]
    found = parameter_budget(case(order(GERMINATE), heard, limits={"parameters_ratio_max": 8.5}))
    assert found is not None
    assert "8.50 times" in found.why


def test_compute_is_what_the_run_comes_to_at_its_present_price() -> None:
    """Five epochs at 1,000, the sixth at 4,000, and 34 more at that price: 3.625 times 40 epochs at 1,000."""
    history = packets(CALM)
    assert compute_ratio(history) == pytest.approx(1.0)
    dearer = [*history[:-1], replace(history[-1], multiply_adds=9_000)]
    assert compute_ratio(dearer) == pytest.approx((9_000 + 34 * 4_000) / 40_000)
    for operation, limit, tripped in ((GERMINATE, 3.6, True), (GERMINATE, 3.7, False), (GRAFT, 1.0, False)):
        found = compute_budget(case(order(operation), dearer, limits={"multiply_adds_ratio_max": limit}))
        assert (found is not None) == tripped
    unmeasured = [replace(packet, multiply_adds=0) for packet in history]
    assert compute_ratio(unmeasured) is None
