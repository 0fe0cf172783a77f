"""Small environments in each of which one fault would show; and the faults themselves, each of which one catches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks._collecting import Collector, Mlp
from esper.simic.learning import Experience, Judgement, Settings, _improve, improve, masked_log_probabilities
from tests.simic import probes

GAMMA = 0.9
SETTINGS = Settings(epochs=4, minibatch_steps=64, trace=0.95, entropy_weight=0.01)
ROUNDS = 25
Change = Callable[[Experience], Experience]


def learned(
    environment: Callable[[int], probes.Probe], *, rounds: int = ROUNDS, change: Change = lambda given: given
) -> Mlp:
    """Return a policy after so many rounds of learning from its own steps."""
    torch.manual_seed(0)
    policy = Mlp(1, environment(0).actions, width=16)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2, eps=1e-5)
    generator = torch.Generator().manual_seed(1)
    collector = Collector(environment, 16, generator)
    for _ in range(rounds):
        experience = change(collector.collect(policy, 16, gamma=GAMMA))
        improve(policy, optimizer, experience, SETTINGS, generator=generator, on_policy=True)
    return policy


def judged(policy: Mlp, *states: float) -> Judgement:
    with torch.no_grad():
        return policy({"state": torch.tensor(states).unsqueeze(1)})


def values(policy: Mlp, *states: float) -> list[float]:
    return judged(policy, *states).values.tolist()


def likes(policy: Mlp, *states: float) -> list[int]:
    """Return the action that each state gives a probability of 0.8 at least; -1 where it gives none that."""
    best, action = judged(policy, *states).logits[0].softmax(-1).max(-1)
    return torch.where(best >= 0.8, action, -1).tolist()


def test_the_critic_learns_a_constant() -> None:
    assert values(learned(probes.ConstantReward), -1.0, 1.0) == pytest.approx([1.0, 1.0], abs=0.1)


def test_the_critic_looks_at_the_state() -> None:
    assert values(learned(probes.ObservedReward), -1.0, 1.0) == pytest.approx([-1.0, 1.0], abs=0.1)


def delay_is_learned(policy: Mlp) -> bool:
    return values(policy, -1.0, 1.0) == pytest.approx([GAMMA, 1.0], abs=0.1)


def test_rewards_are_passed_back_and_end_with_the_episode() -> None:
    assert delay_is_learned(learned(probes.DelayedReward))


def choice_is_learned(policy: Mlp) -> bool:
    return likes(policy, -1.0, 1.0) == [1, 1]


def test_the_actor_learns() -> None:
    assert choice_is_learned(learned(probes.ChosenReward))


def test_actor_and_critic_learn_together() -> None:
    policy = learned(probes.FittingReward)
    assert likes(policy, -1.0, 1.0) == [0, 1]
    assert values(policy, -1.0, 1.0) == pytest.approx([1.0, 1.0], abs=0.1)


def allowed(policy: Mlp) -> Tensor:
    """Return the probabilities with what is forbidden masked."""
    masks = torch.tensor([[True, True, False], [True, True, True]])
    return masked_log_probabilities(judged(policy, -1.0, 1.0).logits[0], masks).exp()


def mask_is_heeded(policy: Mlp) -> bool:
    return bool((allowed(policy).max(-1).values >= 0.8).all()) and allowed(policy).argmax(-1).tolist() == [1, 2]


def test_the_best_of_what_is_allowed_is_learned() -> None:
    assert mask_is_heeded(learned(probes.ForbiddenReward))


def test_a_flipped_sign_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutation: whatever was better than expected becomes rarer."""
    real = _improve.decoupled_ppo

    def flipped(log_pi: Tensor, proximal: Tensor, behaviour: Tensor, advantages: Tensor, **options: Any) -> object:
        return real(log_pi, proximal, behaviour, -advantages, **options)

    monkeypatch.setattr(_improve, "decoupled_ppo", flipped)
    assert not choice_is_learned(learned(probes.ChosenReward))


def test_a_dropped_mask_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutation: what is forbidden keeps its share, as if the policy had been free to take it."""
    monkeypatch.setattr(_improve, "masked_log_probabilities", lambda logits, mask: torch.log_softmax(logits, -1))
    experience = Collector(probes.ForbiddenReward, 16, torch.Generator().manual_seed(1)).collect(
        Mlp(1, 3), 4, gamma=GAMMA
    )
    torch.manual_seed(0)
    policy = Mlp(1, 3)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    found = improve(
        policy, optimizer, experience, replace(SETTINGS, epochs=1), generator=torch.Generator().manual_seed(1)
    )
    assert found.effective_share < 0.999, "the logged probabilities are those of a masked policy"


def test_a_dropped_end_is_caught() -> None:
    """A mutation: episodes go on for ever in the targets."""
    endless = learned(
        probes.DelayedReward, change=lambda each: replace(each, discounts=torch.full_like(each.discounts, GAMMA))
    )
    assert not delay_is_learned(endless)


def test_a_stale_normaliser_is_caught() -> None:
    """A mutation: states are seen as another version of the normaliser shows them, not as they were logged."""
    torch.manual_seed(0)
    policy = Mlp(1, 2)
    torch.nn.init.normal_(policy.actor[-1].weight)
    experience = Collector(probes.FittingReward, 16, torch.Generator().manual_seed(1)).collect(policy, 16, gamma=GAMMA)
    stale = replace(experience, observations={"state": 0.2 * experience.observations["state"] + 0.7})
    shares = []
    for each in (experience, stale):
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
        progress = improve(policy, optimizer, each, SETTINGS, generator=torch.Generator().manual_seed(1))
        shares.append(progress.effective_share)
    assert shares[0] == pytest.approx(1.0)
    assert shares[1] < 0.999
