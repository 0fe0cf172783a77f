"""A round of learning: what it computes, when it ends, what it refuses, and that it repeats."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from esper.simic.learning import (
    NO_STEP,
    Experience,
    Objective,
    Progress,
    Settings,
    _improve,
    improve,
    return_scale,
    rows_of,
)
from tests.simic.mdps import ACTIONS, HORIZON, Mdp, Table, uniform

MDP = Mdp.random(1)
LOG = MDP.log(MDP.behaviour(2), steps=300, seed=3)


def rounds(
    settings: Settings, *, count: int = 1, experience: Experience = LOG, rate: float = 0.05
) -> tuple[Table, Progress]:
    """Return a policy after some rounds from the behaviour policy on, and what the last round did."""
    policy = Table(MDP.behaviour(2))
    optimizer = torch.optim.Adam(policy.parameters(), lr=rate, eps=1e-5)
    generator = torch.Generator().manual_seed(4)
    for _ in range(count):
        progress = improve(policy, optimizer, experience, settings, generator=generator)
    return policy, progress


@pytest.mark.parametrize("on_policy", [False, True])
def test_the_first_ratio_is_exactly_one(monkeypatch: pytest.MonkeyPatch, on_policy: bool) -> None:
    """Goal: a round begins at its proximal policy, to the bit. Method: look into the first minibatch of a network."""
    seen: list[bool] = []
    real = _improve.decoupled_ppo

    def looking(log_pi: Any, proximal: Any, behaviour: Any, *rest: Any, **options: Any) -> Any:
        seen.append(torch.equal(log_pi, proximal) and (not on_policy or torch.equal(proximal, behaviour)))
        return real(log_pi, proximal, behaviour, *rest, **options)

    monkeypatch.setattr(_improve, "decoupled_ppo", looking)
    policy = Table(uniform())
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.1)
    improve(policy, optimizer, LOG, Settings(minibatch_steps=64), generator=torch.Generator(), on_policy=on_policy)
    assert seen[0]
    assert not all(seen[1:])


def test_equal_input_gives_equal_bits() -> None:
    """Goal: a policy can be made again. Method: the same round twice, and once with another order of the steps."""
    first, again = (rounds(Settings(), count=2)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    policy = Table(MDP.behaviour(2))
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05, eps=1e-5)
    improve(policy, optimizer, LOG, Settings(), generator=torch.Generator().manual_seed(5))
    assert not torch.equal(policy.logits, first["logits"])


def test_a_round_ends_where_the_policy_went_far_enough() -> None:
    """The first pass is always done, and looked at after it."""
    assert rounds(Settings(epochs=6, kl_target=0.0), rate=0.2)[1].passes == 1
    assert rounds(Settings(epochs=6))[1].passes == 6


def test_divergence_from_the_behaviour_policy_is_held() -> None:
    """The dearer it is, the nearer the policy stays."""
    free, near, held = (rounds(Settings(behaviour_weight=weight), count=12)[1] for weight in (0.0, 0.3, 30.0))
    assert free.kl_behaviour > 3 * near.kl_behaviour > 9 * held.kl_behaviour > 0.0


def test_entropy_keeps_above_its_floor() -> None:
    """Without a floor it falls below; with one it stays about there."""
    floor = 0.8 * math.log(ACTIONS)
    assert rounds(Settings(), count=30)[1].entropy < floor - 0.2
    assert rounds(Settings(entropy_floor=floor), count=30)[1].entropy > floor - 0.1


def test_regression_stays_within_the_log() -> None:
    """Goal: the conservative choice. Method: an action that was never taken gains nothing; those that paid do."""
    seen = torch.zeros(len(MDP.rewards), ACTIONS, dtype=torch.bool)
    seen[LOG.observations["state"], LOG.chosen[:, 0]] = True
    policy, progress = rounds(Settings(objective=Objective.AWR), count=30)
    share = (policy.policy() * ~seen).sum() / (MDP.behaviour(2) * ~seen).sum()
    assert float(share) < 1.0
    assert MDP.value(policy.policy()) > MDP.value(MDP.behaviour(2))
    assert progress.kl_behaviour < 1.0


@pytest.mark.parametrize("objective", list(Objective))
def test_thin_logs_improve_a_policy(objective: Objective) -> None:
    """Goal: offline gain of 0.10 (0: uniform, 1: best) and more at 600 thin steps on average, by PPO. Method: exact
    values of 12 decision processes; regression, which is meant to be careful, gains less and still something."""
    gains = []
    for seed in range(12):
        mdp = Mdp.random(100 + seed)
        behaviour = mdp.behaviour(200 + seed)
        log = mdp.log(behaviour, steps=600, seed=seed)
        policy = Table(behaviour)
        optimizer = torch.optim.Adam(policy.parameters(), lr=0.05, eps=1e-5)
        settings = Settings(objective=objective, minibatch_steps=300, behaviour_weight=0.1, kl_target=0.05)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(20):
            improve(policy, optimizer, log.scaled(return_scale(log)), settings, generator=generator)
        gains.append(mdp.normalised(mdp.value(policy.policy())) - mdp.normalised(mdp.value(behaviour)))
    assert sum(gains) / len(gains) >= {Objective.PPO: 0.10, Objective.AWR: 0.02}[objective], gains


def test_a_step_that_cannot_have_been_taken_is_refused() -> None:
    """A log whose masks are not its policy's is no log of it."""
    masks = torch.ones(len(LOG), ACTIONS, dtype=torch.bool)
    masks[5, LOG.chosen[5, 0]] = False
    with pytest.raises(ValueError, match="its mask forbids"):
        rounds(Settings(), experience=replace(LOG, masks=(masks,)))


def test_nothing_is_kept_near_to_what_was_not_logged() -> None:
    """A weight without what it weighs would be dropped in silence."""
    bare = replace(LOG, behaviour=())
    assert rounds(Settings(), experience=bare)[1].kl_behaviour == 0.0
    with pytest.raises(ValueError, match="does not hold its probabilities"):
        rounds(Settings(behaviour_weight=0.1), experience=bare)


def test_a_gradient_that_is_no_number_changes_nothing() -> None:
    policy = Table(MDP.behaviour(2))
    policy.values.data[3, 3] = math.nan
    before = policy.logits.detach().clone()
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
    with pytest.raises(FloatingPointError, match="nan"):
        improve(policy, optimizer, LOG, Settings(), generator=torch.Generator())
    assert torch.equal(policy.logits, before)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rewards": LOG.rewards[:-1]}, "other things"),
        ({"chosen": LOG.chosen.repeat(1, 2)}, "1 heads"),
        ({"behaviour": LOG.behaviour * 2}, "probabilities of 2"),
        ({"observations": {"state": torch.zeros(3, dtype=torch.int64)}}, "of \\[3\\] states"),
        ({"reached": LOG.reached + 1}, "nobody observed"),
        ({"rows": torch.zeros_like(LOG.rows)}, "once"),
        ({"rewards": torch.full_like(LOG.rewards, math.inf)}, "reward is not finite"),
        ({"log_behaviour": torch.full_like(LOG.rewards, math.nan)}, "log probability is not finite"),
    ],
)
def test_experience_that_does_not_fit_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(LOG, **change)


def test_episodes_of_any_length_stand_in_rows() -> None:
    rows, follows = rows_of([2, 1, 3])
    assert rows.tolist() == [[0, 1, NO_STEP], [2, NO_STEP, NO_STEP], [3, 4, 5]]
    assert follows.tolist() == [[True, False, False], [False, False, False], [True, True, False]]
    with pytest.raises(ValueError, match="a step at least"):
        rows_of([2, 0])
    assert LOG.episodes == len(LOG) // HORIZON


def test_returns_are_scaled_by_their_spread() -> None:
    """Twice the rewards, half the factor; alike rewards of single steps have none."""
    assert return_scale(LOG.scaled(2.0)) == pytest.approx(return_scale(LOG) / 2)
    rows, follows = rows_of([1] * len(LOG))
    alike = replace(LOG, rewards=torch.ones(len(LOG)), rows=rows, follows=follows)
    assert return_scale(alike) == 1.0
