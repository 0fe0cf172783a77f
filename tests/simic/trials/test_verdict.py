"""The verdict on stated runs: each word where it is due, and BLOCKED for every way in which runs can be wrong."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from esper.simic.trials import (
    BLOCKED,
    GROWTH_PAYS,
    NOT_SHOWN,
    POLICY_PAYS,
    Decider,
    Place,
    TrainedOn,
    TrialRun,
    gather,
    verdict,
)
from tests.simic.trials.worlds import GOOD, asking, changed, ending, plan, stated, world

PLAN = plan()
RUNS = world(PLAN)
ARMS = tuple(GOOD)


def test_a_policy_that_beats_all_its_rivals_pays() -> None:
    """Every claim is shown where every rival is beaten, by intervals, shares of pairs and corrected tests."""
    found = verdict(PLAN, RUNS)
    assert found.word == POLICY_PAYS
    assert {claim.claim: claim.word for claim in found.claims} == {"growth": GROWTH_PAYS, "policy": POLICY_PAYS}
    for claim in found.claims:
        assert {held.rival for held in claim.rivals} == {
            "growth": {"static", "static_equal_compute", "final_shape", "final_shape_equal_compute", "search"},
            "policy": {"static", "random", "fixed", "heuristic", "pbt"},
        }[claim.claim]
        assert all(held.comparison.pairs == 80 and held.adjusted_p >= held.comparison.p_value for held in claim.rivals)


def test_the_order_of_runs_says_nothing() -> None:
    """The same runs in any order give the same verdict, figure by figure."""
    mixed = list(RUNS)
    random.Random(4).shuffle(mixed)  # noqa: S311 - an order, no secret
    assert verdict(PLAN, mixed) == verdict(PLAN, RUNS)


def test_growth_alone() -> None:
    """An untrained policy, one that is as good as `random`, gets no POLICY_PAYS where the heuristic grows well."""
    other = plan(grown="heuristic")
    accuracies = dict(GOOD) | {"learned": GOOD["random"], "final_shape": 0.69, "final_shape_equal_compute": 0.68}
    found = verdict(other, world(other, stated(accuracies | {"search": 0.65})))
    assert found.word == GROWTH_PAYS
    (policy,) = [claim for claim in found.claims if claim.claim == "policy"]
    assert policy.word == NOT_SHOWN
    assert any("better than random" in reason for reason in policy.reasons)


@pytest.mark.parametrize(
    ("accuracies", "says"),
    [
        (dict.fromkeys(ARMS, 0.6), "better than static"),
        (dict(GOOD) | {"static_equal_compute": 0.80, "learned": 0.73, "fixed": 0.9}, "better than fixed"),
        (dict(GOOD) | {"final_shape_equal_compute": 0.9, "pbt": 0.9}, "at most 0.01 worse than final_shape_equal"),
        (dict(GOOD) | {"heuristic": 0.80, "search": 0.9}, "at most 0.005 worse than heuristic"),
    ],
)
def test_what_was_not_shown_is_said(accuracies: dict[str, float], says: str) -> None:
    """One rival that is not beaten is enough, and the reason names it with its figures."""
    found = verdict(PLAN, world(PLAN, stated(accuracies)))
    assert found.word == NOT_SHOWN
    assert any(says in reason for reason in found.reasons), found.reasons


def test_few_large_gains_are_not_enough() -> None:
    """A mean difference clearly above 0 that comes from a third of the pairs lacks the probability of improvement."""
    base = stated(dict(GOOD) | {"fixed": 0.70}, noise=0.0)

    def of(place: Place) -> float:
        accuracy = base(place)
        if place.arm != "learned":
            return accuracy
        rival = base(replace(place, arm="fixed"))
        return rival + (0.15 if place.seed % 3 == 0 else -0.01)

    other = plan(claims={"growth": None})
    found = verdict(other, world(other, of))
    (policy,) = found.claims
    held = next(held for held in policy.rivals if held.rival == "fixed")
    assert held.comparison.mean.low > 0.0
    assert held.comparison.improvement.value < 0.75
    assert not held.shown
    assert found.word == NOT_SHOWN


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_without_its_runs_blocks(arm: str) -> None:
    """With all runs of one arm removed nothing is claimed, and the arm is named."""
    found = verdict(PLAN, [run for run in RUNS if run.place.arm != arm])
    assert found.word == BLOCKED
    assert any(reason.startswith(f"{arm}: ") for reason in found.reasons)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("seed", [0, 19])
def test_one_missing_run_blocks(arm: str, seed: int) -> None:
    """One pair that is not whole is enough."""
    runs = [run for run in RUNS if run.place != Place("spirals", "mlp:4", seed, arm, run.place.part)]
    assert len(runs) < len(RUNS)
    assert verdict(PLAN, runs).word == BLOCKED


Change = Callable[[TrialRun], TrialRun]


@pytest.mark.parametrize("arm", ["static", "static_equal_compute", "learned", "heuristic", "pbt"])
@pytest.mark.parametrize(
    ("what", "change", "says"),
    [
        ("failed", lambda run: replace(run, status="failed", reason="diverged", finished=None), "failed: diverged"),
        ("open", lambda run: replace(run, status="open", finished=None), "is not over"),
        ("lost", lambda run: replace(run, status="failed", reason="stack_lost", finished=None), "there is no run"),
        ("task", lambda run: asking(run, task="digits"), "has task"),
        ("host", lambda run: asking(run, host="mlp:7"), "has host"),
        ("policy", lambda run: asking(run, policy="another"), "has policy"),
        ("epochs", lambda run: asking(run, epochs=run.request.epochs + 1), "has epochs"),
        ("seed", lambda run: asking(run, seed=99), "has seed"),
        ("shorter", lambda run: ending(run, epochs=run.end.epochs - 1), "finished epochs"),
        ("epoch gone", lambda run: replace(run, curve=run.curve[:-1]), "epochs in the log"),
        ("weights", lambda run: replace(run, initial_digest="others"), "equal weights"),
        ("no weights", lambda run: replace(run, initial_digest=""), "equal weights"),
        ("data", lambda run: replace(run, data_digest="others"), "data of spirals"),
        ("replicate", lambda run: asking(run, replicate=2), "has replicate"),
        ("no number", lambda run: ending(run, accuracy=math.nan), "is none"),
        ("too good", lambda run: ending(run, accuracy=1.5), "is none"),
    ],
)
def test_every_mutation_of_a_run_blocks(arm: str, what: str, change: Change, says: str) -> None:
    """Each way in which a run can be other than its arm asked for closes the verdict, with its reason."""
    found = verdict(PLAN, changed(RUNS, arm, change))
    assert found.word == BLOCKED, what
    assert any(says in reason for reason in found.reasons), found.reasons


def _hyper(run: TrialRun) -> TrialRun:
    mutated = asking(run)
    mutated.request.hyperparameters["learning_rate"] = 0.5
    return mutated


def _shaped(run: TrialRun) -> TrialRun:
    mutated = asking(run)
    mutated.request.built_in.add(slot="hidden", spec=b"{}")
    return mutated


@pytest.mark.parametrize(
    ("arm", "change", "says"),
    [
        ("static", _hyper, "hyperparameters"),
        ("learned", _hyper, "hyperparameters"),
        ("static", _shaped, "kernels from the beginning"),
        ("static_equal_compute", lambda run: ending(run, multiply_adds=5), "compute is not equal"),
        ("final_shape_equal_compute", lambda run: ending(run, multiply_adds=5), "compute is not equal"),
        ("pbt", lambda run: ending(run, multiply_adds=5), "compute is not equal"),
        ("search", lambda run: ending(run, multiply_adds=5), "compute is not equal"),
        ("search", lambda run: asking(run, host="mlp:90"), "no trial of the search"),
        ("search", lambda run: asking(run, host="cnn:3"), "no trial of the search"),
        ("search", lambda run: asking(run, seed=77), "no trial of the search"),
        ("final_shape", lambda run: ending(run, parameters=301), "its shape is another"),
        ("learned", lambda run: replace(run, decisions=7), "without a decision"),
        ("learned", lambda run: replace(run, deciders=frozenset()), "epochs without a decision"),
        (
            "learned",
            lambda run: replace(run, deciders=frozenset({Decider("learned", "2", "e" * 64)})),
            "more than one policy",
        ),
        ("static", lambda run: ending(run, multiply_adds=0), "counts no epochs, multiply-adds"),
        ("learned", lambda run: ending(run, parameters=0), "counts no epochs, multiply-adds"),
    ],
)
def test_every_mutation_of_what_an_arm_means_blocks(arm: str, change: Change, says: str) -> None:
    """Unequal compute, another shape, other rates, and a policy that was exchanged midway are found by arm."""
    whole = says == "compute is not equal" and arm in {"pbt", "search"}
    runs = [change(run) if run.place.arm == arm else run for run in RUNS] if whole else changed(RUNS, arm, change)
    found = verdict(PLAN, runs)
    assert found.word == BLOCKED
    assert any(says in reason for reason in found.reasons), found.reasons


@pytest.mark.parametrize("decider", [Decider("noop", "1", "d" * 64), Decider("learned", "", "")])
def test_a_policy_that_something_else_stood_in_for_blocks(decider: Decider) -> None:
    """Where all runs of an arm were decided by another policy, or by one without a digest, it was not the arm's."""
    runs = [replace(run, deciders=frozenset({decider})) if run.place.arm == "learned" else run for run in RUNS]
    found = verdict(PLAN, runs)
    assert found.word == BLOCKED
    assert any("not by a known 'learned'" in reason for reason in found.reasons), found.reasons


def test_a_policy_that_saw_a_held_out_cell_blocks() -> None:
    """Trained on runs of a held-out cell, a policy shows nothing there; on others it may."""
    digest = "d" * 64
    assert verdict(PLAN, RUNS, {digest: TrainedOn(frozenset({"spirals/mlp:9"}))}) == verdict(PLAN, RUNS)
    for said in (False, True):
        seen = TrainedOn(frozenset({"spirals/mlp:9", "spirals/mlp:4"}), said=said)
        found = verdict(PLAN, RUNS, {digest: seen})
        assert found.word == BLOCKED
        assert found.reasons == ("learned: it was trained on held-out cells: spirals/mlp:4",)


def test_what_an_update_says_of_itself_is_said_to_be_so() -> None:
    """What was trained on elsewhere is named in a note with where that is known from; what the log holds is not."""
    digest, cells = "d" * 64, frozenset({"moons/mlp:3"})
    assert gather(PLAN, RUNS, {digest: TrainedOn(cells)}).notes == ()
    (note,) = gather(PLAN, RUNS, {digest: TrainedOn(cells, said=True)}).notes
    assert "trained on moons/mlp:3: so its update says" in note


def test_two_runs_of_one_place_block() -> None:
    """Whoever runs a place again until it suits is found: also where both runs are equal."""
    twice = [*RUNS, replace(RUNS[3], run_id="run-again", offset=10**6)]
    found = verdict(PLAN, twice)
    assert found.word == BLOCKED
    assert any("2 runs are" in reason for reason in found.reasons)


def test_a_run_that_was_lost_and_run_again_counts_once() -> None:
    """A run that ended with its trainer says nothing of its arm; what was run in its place does."""
    lost = replace(RUNS[3], run_id="run-lost", status="failed", reason="worker_lost", finished=None, offset=-1)
    assert verdict(PLAN, [lost, *RUNS]) == verdict(PLAN, RUNS)


def test_a_run_of_no_place_blocks() -> None:
    """A run that names the plan and none of its places is not passed over."""
    stray = replace(RUNS[0], run_id="run-stray", place=replace(RUNS[0].place, seed=12345))
    found = verdict(PLAN, [*RUNS, stray])
    assert found.word == BLOCKED
    assert any("no place for" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seeds": {"first": 0, "count": 3}}, "3 seeds, a claim takes 20"),
        ({"cells": [{"task": "spirals", "host": "mlp:3"}]}, "1 held-out cells, a claim takes 4"),
        ({"arms": {arm: {} for arm in ARMS if arm != "search"}}, "the plan has no arm search"),
        ({"claims": {"growth": {"superior_to": ["static"]}}}, "not held to be better than static_equal_compute"),
        ({"claims": {"policy": {"superior_to": ["static", "random", "fixed"]}}}, "not held against heuristic"),
        (
            {"claims": {"policy": {"superior_to": ["static", "random", "fixed", "heuristic", "pbt", "learned"]}}},
            "against its own arm",
        ),
    ],
)
def test_a_plan_that_asks_for_too_little_blocks(changes: dict[str, Any], says: str) -> None:
    """Fewer seeds, cells or rivals than a claim takes can be run and reported, and claim nothing."""
    weak = plan(**changes)
    found = verdict(weak, world(weak))
    assert found.word == BLOCKED
    assert any(says in reason for reason in found.reasons), found.reasons


def test_a_plan_without_claims_shows_nothing() -> None:
    """Nothing claimed is nothing shown."""
    silent = plan(claims={"growth": None, "policy": None})
    assert verdict(silent, world(silent)).word == NOT_SHOWN


def test_cost_counts_where_the_plan_says_so() -> None:
    """Each doubling of compute costs what the plan states: a gain that is smaller than its cost is none."""
    claim = {
        "superior_to": ["static", "random", "fixed"],
        "not_inferior_to": ["heuristic", "pbt"],
        "metric": "score",
        "margin": 0.005,
    }
    cheap = plan(claims={"growth": None, "policy": claim}, cost={"multiply_adds": 0.01})
    dear = plan(claims={"growth": None, "policy": claim}, cost={"multiply_adds": 0.3})
    assert verdict(cheap, world(cheap)).word == POLICY_PAYS
    found = verdict(dear, world(dear))
    assert found.word == NOT_SHOWN
    assert any("better than static" in reason for reason in found.reasons)
