"""The judgement about a promoted version: what ends a promotion, what must not, and that it follows from the log."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.core.rng import stream_of
from esper.leyline import messages as ly
from esper.simic.experience import RewardWeights
from esper.tamiyo._watch import Limits, Seen, Window, breaches, change, judge, seen

LIMITS = Limits(reports=100, reports_min=50, reward_drop=0.0, bad_rise=0.1, aborted_share=0.5, invalid_share=0.1)


def run_of(
    stream: Random, name: str, *, worth: float = 0.0, epochs: range = range(1, 41), bad: float = 0.3
) -> list[Seen]:
    """Return a run's reports: gains that shrink over the epochs, a level of its own, noise, and what a version adds."""
    level = stream.gauss(0.0, 0.02)
    return [
        Seen(
            run_id=name,
            epoch=epoch,
            reward=1.0 / epoch + level + worth + stream.gauss(0.0, 0.05),
            aborted=False,
            bad=stream.random() < bad,
            invalid=False,
        )
        for epoch in epochs
    ]


def runs_of(stream: Random, prefix: str, count: int, **how: object) -> list[Seen]:
    """Return the reports of several runs."""
    return [one for at in range(count) for one in run_of(stream, f"{prefix}{at}", **how)]  # type: ignore[arg-type]


def names(checks: Sequence[ly.GateCheck]) -> set[str]:
    """Return the figures that are breached."""
    return {one.name for one in breaches(checks)}


def test_a_version_that_does_harm_is_found() -> None:
    """Goal: power. Method: 40 draws of a version whose decisions lose 0.1, and of one that does harm more often."""
    worse = harmful = 0
    for seed in range(40):
        stream = stream_of(seed)
        before = runs_of(stream, "b", 10)
        worse += "watch.reward_change_upper" in names(judge(runs_of(stream, "a", 8, worth=-0.1), before, LIMITS))
        harmful += "watch.bad_share_rise_lower" in names(judge(runs_of(stream, "a", 8, bad=0.7), before, LIMITS))
    assert (worse, harmful) == (40, 40)


def test_a_version_that_is_as_good_is_kept() -> None:
    """Goal: no false alarm, though one looks after each run. Method: 200 draws of equals, judged after each of 12."""
    alarms = 0
    for seed in range(200):
        stream = stream_of(1_000 + seed)
        before = runs_of(stream, "b", 10)
        after: list[Seen] = []
        breached = False
        for at in range(12):
            after += run_of(stream, f"a{at}")
            breached = breached or bool(names(judge(after, before, LIMITS)))
        alarms += breached
    assert alarms <= 4, f"{alarms} of 200 equals were given up"


def test_taking_over_in_the_middle_of_runs_is_no_harm() -> None:
    """Goal: late epochs gain less whoever decides. Method: equals of which one has only the later half of its runs."""
    for seed in range(40):
        stream = stream_of(2_000 + seed)
        before = runs_of(stream, "b", 10)
        after = runs_of(stream, "a", 8, epochs=range(25, 41))
        plain = sum(one.reward or 0.0 for one in after) / len(after) - sum(one.reward or 0.0 for one in before) / 400
        assert plain < 0.0, "without a look at the epochs it would seem to do harm"
        assert not names(judge(after, before, LIMITS))


def test_missing_evidence_ends_nothing() -> None:
    """Goal: too little is no breach. Method: few reports, few runs, no version before, none at the same epochs."""
    stream = stream_of(3)
    before = runs_of(stream, "b", 10)
    (only,) = judge(runs_of(stream, "a", 1, worth=-9.0), before, LIMITS)
    assert (only.name, only.passed) == ("watch.reports", False)
    assert not breaches([only])
    assert not names(judge(runs_of(stream, "a", 3, worth=-9.0), before, LIMITS)), "three runs may be chance"
    assert not names(judge(runs_of(stream, "a", 8, worth=-9.0), [], LIMITS))
    assert not names(judge(runs_of(stream, "a", 8, worth=-9.0), before[:120], LIMITS))
    assert not names(judge(runs_of(stream, "a", 8, worth=-9.0, epochs=range(50, 90)), before, LIMITS))


@pytest.mark.parametrize(
    ("aborted", "invalid", "breached"),
    [
        (0.0, 0.0, set()),
        (0.4, 0.0, set()),
        (0.6, 0.0, {"watch.aborted_share"}),
        (0.0, 0.2, {"watch.invalid_share"}),
        (1.0, 1.0, {"watch.aborted_share", "watch.invalid_share"}),
    ],
)
def test_what_no_version_may_do_needs_no_comparison(aborted: float, invalid: float, breached: set[str]) -> None:
    """Goal: also the first version is watched. Method: shares of aborted and invalid reports without any before."""
    reports = [
        Seen(f"a{at // 10}", at % 10 + 1, None, aborted=at < 100 * aborted, bad=False, invalid=at < 100 * invalid)
        for at in range(100)
    ]
    assert names(judge(reports, [], LIMITS)) == breached


def test_a_change_equals_its_definition() -> None:
    """Goal: the arithmetic. Method: four runs of two epochs on both sides, by hand."""
    before = [(f"b{at}", epoch, float(at) + 10.0 * epoch) for at in range(4) for epoch in (1, 2)]
    after = [(f"a{at}", epoch, float(at) + 10.0 * epoch + 5.0) for at in range(4) for epoch in (1, 2)]
    found = change(after, before, least=8)
    assert found is not None
    assert found.mean == pytest.approx(5.0)
    # Each run lies -1.5, -0.5, 0.5 or 1.5 off, in both epochs: the variance of a mean of four, on either side.
    error = math.sqrt(2 * (4 / 3) * (1.5**2 + 0.5**2 + 0.5**2 + 1.5**2) / 16)
    assert found.margin / error == pytest.approx(9.22, rel=0.15), "Student's t of three degrees, by approximation"
    assert change(after, before, least=9) is None


def report(run: str, epoch: int, *, event: str = "p", digest: str = "new", gain: float | None = 0.1) -> ly.FieldReport:
    """Return a field report."""
    found = ly.FieldReport(
        training_run_id=run,
        epoch=epoch,
        outcome=ly.FIELD_REPORT_OUTCOME_SUCCESS,
        next_state_event_id="next",
        policy_digest=digest,
        policy_event_id=event,
    )
    if gain is not None:
        found.reward_parts.update({"validation_gain": gain, "parameter_rent": -0.5})
    return found


def test_rewards_are_weighed_as_the_version_was_trained() -> None:
    """Goal: the same reward. Method: reports with and without weights, without figures, at the end of a run."""
    assert seen(report("r", 1), {}).reward == pytest.approx(-0.4)
    measured = report("r", 1)
    measured.reward_parts["compute"] = -20.0
    measured.metrics.update(
        validation_accuracy_begin=0.5, validation_accuracy_end=0.6, parameters_begin=400.0, parameters_end=1_200.0
    )
    weights = RewardWeights(accuracy=1.0, loss=0.5, compute=-0.001, parameters=-0.01).as_dict()
    learned = 0.1 + 0.5 * 0.1 - 0.001 * 20.0 - 0.01 * 2.0
    assert seen(measured, weights).reward == pytest.approx(learned), "accuracy, loss, what was spent, what was added"
    for name in weights:
        assert seen(measured, {name: 1.0}).reward != 0.0, f"{name} is a part that Simic knows and the watch does not"
    assert seen(report("r", 1, gain=None), {}) == Seen("r", 1, None, aborted=False, bad=False, invalid=True)
    last = report("r", 1, gain=None)
    last.next_state_event_id = ""
    assert seen(last, {}) == Seen("r", 1, None, aborted=False, bad=False, invalid=False)
    aborted = report("r", 1)
    aborted.outcome = ly.FIELD_REPORT_OUTCOME_ABORTED
    assert (seen(aborted, {}).aborted, seen(aborted, {}).bad) == (True, True)


def window(reports: int = 3) -> Window:
    """Return an empty window over promotion `p` of version `new` after `old`."""
    limits = Limits(reports, 2, 0.0, 0.1, 0.5, 0.1)
    return Window("p", digest="new", digest_before="old", weights={}, limits=limits)


def test_only_what_this_promotion_decided_is_watched() -> None:
    """Goal: no report of another time. Method: explored, pinned and earlier decisions, and more than the window."""
    one = window()
    assert not one.fold(0, report("r", 1, digest="explored"))
    assert not one.fold(0, report("r", 1, event=""))
    assert not one.fold(0, report("r", 1, event="an earlier promotion"))
    assert not one.fold(0, report("r", 1, digest="old", event=""))
    assert one.fold(0, report("r", 1))
    assert not one.fold(0, report("r", 1, gain=-9.0)), "of two reports about one decision the first counts"
    assert one.fold(0, report("r", 2))
    assert one.fold(0, report("r", 3))
    assert not one.fold(0, report("r", 4)), "the window of this partition is full"
    assert not one.full(2)
    assert one.fold(1, report("s", 1))
    (count, *_) = one.checks()
    assert (count.name, count.value) == ("watch.reports", 4.0)
    assert one.full(1)


@given(st.randoms(use_true_random=False))
def test_the_verdict_follows_from_the_log(random: Random) -> None:
    """Goal: a restart says the same. Method: four partitions in any interleaving, with records again."""
    stream = stream_of(5)
    partitions = {
        place: [
            report(f"r{place}-{at % 3}", at // 3 + 1, gain=stream.gauss(0.0, 1.0), **who)
            for at in range(18)
            for who in ({}, {"digest": "old", "event": ""})
        ]
        for place in range(4)
    }
    straight = window(10)
    for place, reports in partitions.items():
        for one in reports:
            straight.fold(place, one)
    mixed = window(10)
    left = {place: list(reports) for place, reports in partitions.items()}
    while any(left.values()):
        place = random.choice([place for place, reports in left.items() if reports])
        one = left[place].pop(0)
        mixed.fold(place, one)
        if one.policy_digest == "new" and random.random() < 0.3:
            mixed.fold(place, one)
    assert mixed.checks() == straight.checks()
