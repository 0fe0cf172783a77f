"""Population based training: who copies whom, by Ray's published defaults, and what it comes to."""

from __future__ import annotations

import pytest

from esper.simic.trials._plan import PopulationArm
from esper.simic.trials._population import boundaries, exploits, first_rates
from tests.simic.trials.worlds import plan, world

ARM = PopulationArm()


def test_the_worst_quarter_copies_the_best() -> None:
    """Of four members the last copies the first, and its rate is the donor's times 0.8 or 1.2, or drawn anew."""
    seen = set()
    for seed in range(200):
        (move,) = exploits(ARM, [0.5, 0.9, 0.1, 0.6], [0.001, 0.002, 0.003, 0.004], seed=seed, generation=1)
        assert (move.member, move.donor) == (2, 1)
        assert ARM.rates[0] <= move.rate <= ARM.rates[1]
        kind = next((factor for factor in ARM.factors if move.rate == pytest.approx(0.002 * factor)), "resampled")
        seen.add((seed, kind))
    shares = {kind: sum(each == kind for _, each in seen) / 200 for kind in (0.8, 1.2, "resampled")}
    assert shares["resampled"] == pytest.approx(0.25, abs=0.1)
    assert shares[0.8] == pytest.approx(0.375, abs=0.1)


def test_larger_populations_exploit_by_quantiles() -> None:
    """Of eight members the two worst copy one of the two best each; nobody is donor and copier at once."""
    scores = [0.1 * number for number in range(8)]
    moves = exploits(ARM, scores, [0.001] * 8, seed=1, generation=1)
    assert [move.member for move in moves] == [0, 1]
    assert {move.donor for move in moves} <= {6, 7}
    (one,) = exploits(PopulationArm(population=2, quantile=0.5), [0.2, 0.2], [0.001] * 2, seed=1, generation=1)
    assert (one.member, one.donor) == (1, 0)


def test_members_are_compared_at_equal_intervals_and_not_at_the_end() -> None:
    """Boundaries lie within the epochs."""
    assert boundaries(ARM, 40) == [10, 20, 30]
    assert boundaries(ARM, 10) == [3, 6, 9]
    assert boundaries(ARM, 1) == []


def test_the_first_member_begins_as_a_user_would() -> None:
    """The task's own rate is among the first, the others are drawn within bounds and follow from the seed."""
    rates = first_rates(ARM, 5)
    assert rates[0] == ARM.first_rate
    assert len(set(rates)) == 4
    assert all(ARM.rates[0] <= rate <= ARM.rates[1] for rate in rates)
    assert rates == first_rates(ARM, 5) != first_rates(ARM, 6)


def test_a_population_spends_what_growing_did() -> None:
    """Members have so many epochs that together they reach the grown run's compute, and not a step more."""
    small = plan(seeds={"first": 0, "count": 1}, cells=[{"task": "spirals", "host": "mlp:3"}])
    runs = world(small)
    grown = next(run for run in runs if run.place.arm == "learned")
    members = [run for run in runs if run.place.arm == "pbt" and run.place.part.startswith("g0")]
    forks = [run for run in runs if run.place.arm == "pbt" and not run.place.part.startswith("g0")]
    spent = sum(run.end.multiply_adds for run in members)
    assert len(members) == 4
    assert grown.end.multiply_adds <= spent < grown.end.multiply_adds + 4 * 1000
    assert [run.request.forked_epochs for run in forks] == boundaries(ARM, members[0].end.epochs)
    assert all(run.request.forked_from in {each.run_id for each in [*members, *forks]} for run in forks)
