"""From a log to a candidate to a verdict, on decision processes whose values are known exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from esper.simic.evaluation import Gain, GainBounds, as_seen, effective_episodes, judged_gain
from esper.simic.learning import Experience, rows_of
from esper.simic.training import Ended, OfflineSettings, Training, train_offline
from tests.campaigns import WHOLE
from tests.simic.mdps import ACTIONS, HORIZON, STATES, Mdp, Table

PROCESSES = 200 if WHOLE else 24
EPISODES = 200
SETTINGS = OfflineSettings(learning_rate=0.05)


@dataclass(frozen=True)
class Trial:
    """A candidate, what it is truly worth more than the incumbent (0: uniform, 1: best), and what the log says."""

    better: float
    gain: Gain


def trained(log: Experience, behaviour: Tensor, *, seed: int) -> tuple[Table, Training]:
    policy = Table(behaviour)
    return policy, train_offline(policy, log, SETTINGS, generator=torch.Generator().manual_seed(seed))


def judge(policy: Table, held_out: Experience, *, value_scale: float, seed: int) -> Gain:
    seen = as_seen(policy, held_out, value_scale=value_scale)
    return judged_gain(
        seen.episodes,
        torch.zeros_like(seen.episodes.rewards),
        seen.values,
        seen.next_values,
        GainBounds(),
        generator=torch.Generator().manual_seed(seed),
        samples=500,
    )


def trials(seed: int) -> list[Trial]:
    """Return a trained candidate, one that learned the opposite, and one that moved by chance; of one process."""
    mdp = Mdp.random(seed)
    behaviour = mdp.behaviour(seed + 1, mixed=0.1)
    log, held_out = (mdp.log(behaviour, steps=EPISODES * HORIZON, seed=2 * seed + half) for half in (0, 1))
    candidates = [trained(log, behaviour, seed=seed), trained(log.scaled(-1.0), behaviour, seed=seed)]
    chance = 0.2 * torch.randn(STATES, ACTIONS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    candidates.append((Table(torch.softmax(behaviour.log() + chance, -1)), candidates[0][1]))
    worth = mdp.normalised(mdp.value(behaviour))
    return [
        Trial(
            mdp.normalised(mdp.value(policy.policy())) - worth,
            judge(policy, held_out, value_scale=training.value_scale, seed=seed),
        )
        for policy, training in candidates
    ]


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_what_passes_is_better_and_what_is_better_passes(record_property: Callable[[str, object], None]) -> None:
    """Goal: promoted only on evidence, and evidence that can be had. Method: candidates of three kinds on many
    processes, judged on episodes that they did not learn from; of those that pass 5 % may be worse than the incumbent,
    and of those that are better by 0.1 at least 70 % pass. What learned from flipped rewards never passes."""
    found = [trials(1_000 + seed) for seed in range(PROCESSES)]
    every = [trial for kinds in found for trial in kinds]
    passed = [trial for trial in every if trial.gain.passed]
    better = [trial for trial in every if trial.better >= 0.1]
    record_property("candidates", len(every))
    record_property("passed_and_worse", [len(passed), sum(trial.better < 0.0 for trial in passed)])
    record_property("better_by_0.1_and_passed", [len(better), sum(trial.gain.passed for trial in better)])
    assert passed
    assert better
    assert sum(trial.better < 0.0 for trial in passed) <= 0.05 * len(passed)
    assert sum(trial.gain.passed for trial in better) >= 0.7 * len(better)
    assert not any(kinds[1].gain.passed for kinds in found)
    assert all(kinds[1].better < 0.0 for kinds in found)


def test_a_training_ends_where_the_log_can_no_longer_judge_it() -> None:
    """Goal: no candidate that only another log could judge. Method: the policy that stays is worth the episodes that
    were asked for; with a floor of all of them nothing moves, and without one all rounds are done."""
    mdp = Mdp.random(7)
    behaviour = mdp.behaviour(8, mixed=0.1)
    log = mdp.log(behaviour, steps=100 * HORIZON, seed=9)
    policy, training = trained(log, behaviour, seed=1)
    assert training.ended is Ended.SUPPORT
    assert 0 < len(training.rounds) < SETTINGS.rounds
    kept = effective_episodes(as_seen(policy, log).episodes)
    assert training.effective_episodes == kept >= SETTINGS.support_min * 100
    still, whole = Table(behaviour), Table(behaviour)
    for one, support in ((still, 1.0), (whole, 0.0)):
        settings = replace(SETTINGS, support_min=support, rounds=3)
        ended = train_offline(one, log, settings, generator=torch.Generator().manual_seed(1))
        assert (ended.ended, len(ended.rounds)) == ((Ended.SUPPORT, 0) if support else (Ended.ROUNDS, 3))
    assert torch.equal(still.logits, Table(behaviour).logits)


def test_a_training_repeats_to_the_bit() -> None:
    """Goal: a candidate can be made again. Method: twice from one log and seed, once from another seed."""
    mdp = Mdp.random(7)
    behaviour = mdp.behaviour(8, mixed=0.1)
    log = mdp.log(behaviour, steps=600, seed=9)
    first, again, other = (trained(log, behaviour, seed=seed)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["logits"], other["logits"])


def test_a_gain_that_few_episodes_carry_is_not_shown() -> None:
    """Goal: what cannot be shown fails. Method: the best policy there is, far from what the log supports."""
    mdp = Mdp.random(7)
    behaviour = mdp.behaviour(8, mixed=0.1)
    best = torch.softmax(50.0 * mdp.best()[1], -1)
    gain = judge(Table(best), mdp.log(behaviour, steps=100 * HORIZON, seed=9), value_scale=1.0, seed=1)
    assert not gain.passed
    assert gain.checks[0].name == "effective_episodes"
    assert not gain.checks[0].passed


def test_the_incumbent_gains_nothing_on_itself() -> None:
    """No luck of the episodes makes a policy better than itself."""
    mdp = Mdp.random(7)
    behaviour = mdp.behaviour(8, mixed=0.1)
    gain = judge(Table(behaviour), mdp.log(behaviour, steps=100 * HORIZON, seed=9), value_scale=1.0, seed=1)
    assert not gain.passed
    assert gain.doubly_robust.estimate == pytest.approx(0.0, abs=1e-4)


def test_rows_of_several_episodes_are_no_episodes() -> None:
    """Importance weights are products over an episode: rows that mix them are refused."""
    mdp = Mdp.random(7)
    log = mdp.log(mdp.behaviour(8), steps=4 * HORIZON, seed=9)
    rows, _ = rows_of([len(log)])
    with pytest.raises(ValueError, match="more than one episode"):
        as_seen(Table(mdp.behaviour(8)), replace(log, rows=rows, follows=log.follows.view(1, -1)))
