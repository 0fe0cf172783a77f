"""Off-policy estimates against exact values: unbiased where they say so, and with intervals that hold what they say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from esper.simic.evaluation._estimates import (
    Episodes,
    Weighted,
    doubly_robust,
    effective_episodes,
    logged,
    per_decision,
)
from esper.simic.evaluation._intervals import of_mean, of_statistic, resampled
from tests.campaigns import WHOLE
from tests.simic.mdps import HORIZON, Mdp

LOGS = 400


def judged(mdp: Mdp, behaviour: Tensor, policy: Tensor, *, episodes: int, seed: int) -> tuple[Episodes, Tensor, Tensor]:
    """Return a log as a policy sees it, with a critic that is somewhat off: values of states, and of those reached."""
    log = mdp.log(behaviour, steps=episodes * HORIZON, seed=seed)
    state, done = log.observations["state"], log.observations["done"]
    log_pi = policy[state, log.chosen[:, 0]].log()
    critic = 0.8 * mdp.values(policy) + 0.3
    critic[HORIZON] = 0.0
    after = torch.where(done == HORIZON - 1, 0.0, critic[done + 1, state[log.reached]])
    found = Episodes(
        log_ratios=log.in_rows(log_pi - log.log_behaviour).double(),
        rewards=log.in_rows(log.rewards).double(),
        discounts=log.in_rows(log.discounts).double(),
        held=torch.ones_like(log.follows),
    )
    return found, log.in_rows(critic[done, state]), log.in_rows(after)


def nearby(mdp: Mdp, behaviour: Tensor, *, step: float) -> Tensor:
    """Return a policy that is better than the behaviour policy and not far from it."""
    return torch.softmax(behaviour.log() + step * mdp.best()[1], -1)


def test_estimates_are_unbiased_and_the_critic_helps() -> None:
    """Goal: right on average. Method: 40,000 episodes of a policy of known value; the errors are within three standard
    errors, and the doubly robust one varies least."""
    mdp = Mdp.random(3)
    behaviour = mdp.behaviour(4)
    policy = nearby(mdp, behaviour, step=0.5)
    episodes, values, next_values = judged(mdp, behaviour, policy, episodes=40_000, seed=5)
    truth = mdp.value(policy)
    spreads = []
    for found in (per_decision(episodes), doubly_robust(episodes, values, next_values)):
        spreads.append(float(found.std()))
        assert abs(float(found.mean()) - truth) < 3 * spreads[-1] / len(found) ** 0.5
    assert spreads[1] < 0.8 * spreads[0]
    weighted = Weighted.of(episodes).estimate(torch.ones(1, 40_000, dtype=torch.float64))
    assert float(weighted) == pytest.approx(truth, abs=0.05)
    assert abs(float(logged(episodes).mean()) - mdp.value(behaviour)) < 0.05
    assert 1_000 < effective_episodes(episodes) < 40_000


def test_of_the_policy_itself_every_estimate_is_what_was_logged() -> None:
    """Every weight is 1.0 there, to the rounding of a logged probability in float32."""
    mdp = Mdp.random(3)
    behaviour = mdp.behaviour(4)
    episodes, values, next_values = judged(mdp, behaviour, behaviour, episodes=50, seed=5)
    torch.testing.assert_close(per_decision(episodes), logged(episodes), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(doubly_robust(episodes, values, next_values), logged(episodes), atol=1e-4, rtol=0.0)
    assert effective_episodes(episodes) == pytest.approx(50, abs=1e-3)


def test_episodes_of_all_lengths_written_out() -> None:
    """Two episodes, of two steps and of one, cut off with a state of value 4 after it."""
    held = torch.tensor([[True, True], [True, False]])
    ratios = torch.tensor([[2.0, 0.5], [3.0, 99.0]], dtype=torch.float64)
    episodes = Episodes(
        log_ratios=ratios.log(),
        rewards=torch.tensor([[1.0, 10.0], [5.0, 99.0]], dtype=torch.float64),
        discounts=torch.tensor([[0.9, 0.0], [0.5, 99.0]], dtype=torch.float64),
        held=held,
    )
    assert logged(episodes).tolist() == [1.0 + 0.9 * 10.0, 5.0]
    assert per_decision(episodes).tolist() == pytest.approx([2.0 * 1.0 + 1.0 * 9.0, 15.0])
    values = torch.tensor([[3.0, 2.0], [1.0, 99.0]], dtype=torch.float64)
    next_values = torch.tensor([[2.0, 0.0], [4.0, 99.0]], dtype=torch.float64)
    second = 2.0 + 0.5 * (10.0 - 2.0)
    assert doubly_robust(episodes, values, next_values).tolist() == pytest.approx(
        [3.0 + 2.0 * (1.0 + 0.9 * second - 3.0), 1.0 + 3.0 * (5.0 + 0.5 * 4.0 - 1.0)]
    )
    counts = torch.tensor([[1.0, 1.0], [2.0, 0.0]], dtype=torch.float64)
    assert Weighted.of(episodes).estimate(counts).tolist() == pytest.approx(
        [(2.0 + 15.0) / 5.0 + 9.0 / (1.0 + 3.0), 1.0 + 9.0]
    )


def test_an_action_that_is_never_taken_has_no_weight() -> None:
    episodes = Episodes(
        log_ratios=torch.tensor([[-math.inf]], dtype=torch.float64),
        rewards=torch.ones(1, 1, dtype=torch.float64),
        discounts=torch.zeros(1, 1, dtype=torch.float64),
        held=torch.ones(1, 1, dtype=torch.bool),
    )
    assert (float(per_decision(episodes)), effective_episodes(episodes)) == (0.0, 0.0)
    assert Weighted.of(episodes).estimate(torch.ones(1, 1, dtype=torch.float64)).tolist() == [0.0]


def test_episodes_that_do_not_fit_are_refused() -> None:
    figures = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="alike"):
        Episodes(figures, figures[:1], figures, figures.bool())
    with pytest.raises(ValueError, match="a step at least"):
        Episodes(figures, figures, figures, figures.bool())


@pytest.mark.parametrize("estimator", ["doubly robust", "per decision", "weighted"])
def test_intervals_cover_the_truth(estimator: str) -> None:
    """Goal: of 90 % intervals 85 to 95 % hold the truth. Method: 400 logs of 100 episodes, each of another process."""
    hits = 0
    for seed in range(LOGS):
        mdp = Mdp.random(seed % 20)
        behaviour = mdp.behaviour(seed % 20, mixed=0.3)
        policy = nearby(mdp, behaviour, step=0.2)
        episodes, values, next_values = judged(mdp, behaviour, policy, episodes=100, seed=seed)
        counts = resampled(100, generator=torch.Generator().manual_seed(seed), samples=1_000 if WHOLE else 400)
        if estimator == "weighted":
            found = of_statistic(Weighted.of(episodes).estimate, counts, coverage=0.9)
        else:
            figures = (
                per_decision(episodes) if estimator == "per decision" else doubly_robust(episodes, values, next_values)
            )
            found = of_mean(figures, counts, coverage=0.9)
        hits += found.low <= mdp.value(policy) <= found.high
    assert 0.85 <= hits / LOGS <= 0.95, hits / LOGS


def test_one_figure_has_no_interval() -> None:
    counts = resampled(1, generator=torch.Generator())
    found = of_mean(torch.tensor([2.0]), counts, coverage=0.9)
    assert (found.low, found.estimate, found.high) == (2.0, 2.0, 2.0)
