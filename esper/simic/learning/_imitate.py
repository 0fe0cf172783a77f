"""Where learning from a log begins: at the policy that took its steps, and a critic of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from esper.simic.learning._experience import Experience
from esper.simic.learning._heads import divergence, masked_log_probabilities
from esper.simic.learning._improve import ActorCritic, take_step
from esper.simic.learning._objective import value_loss
from esper.simic.learning._returns import Steps, generalised_advantages


@dataclass(frozen=True)
class ImitationSettings:
    """How a policy imitates; the defaults bring a fresh network within 0.01 nats of a policy without a network."""

    passes: int = 20
    minibatch_steps: int = 1_024
    learning_rate: float = 1e-3
    value_weight: float = 0.5
    gradient_norm_max: float = 0.5


def imitate(
    policy: ActorCritic, experience: Experience, settings: ImitationSettings, *, generator: torch.Generator
) -> float:
    """Let a policy give each action what the log says that its takers gave it; return KL(mu || pi) after the last pass.

    The critic learns the returns that were seen. From here importance weights are near 1, and what is learned next is
    an improvement of what was done, not of chance. In nats, the mean over steps.

    Raises:
        ValueError: the log does not hold the probabilities.
        FloatingPointError: a loss or a gradient is not finite.
    """
    if not experience.behaviour:
        raise ValueError("the log does not hold what there is to imitate")
    assert isinstance(policy, nn.Module), "a policy that learns is a module"
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate, eps=1e-5)
    targets = _returns(experience)
    away = float("inf")
    for _ in range(settings.passes):
        order = torch.randperm(len(experience), generator=generator)
        total = 0.0
        for steps in torch.split(order, settings.minibatch_steps):
            judged = policy({name: tensor[steps] for name, tensor in experience.observations.items()})
            heads = [
                masked_log_probabilities(logits, mask[steps])
                for logits, mask in zip(judged.logits, experience.masks, strict=True)
            ]
            apart = divergence([head[steps] for head in experience.behaviour], heads).mean()
            loss = apart + settings.value_weight * value_loss(judged.values, targets[steps])
            take_step(optimizer, loss, settings.gradient_norm_max)
            total += float(apart.detach()) * len(steps)
        away = total / len(experience)
    return away


def _returns(experience: Experience) -> torch.Tensor:
    """Return the discounted returns from every step, [N]; a cut-off episode's end counts as 0."""
    rewards = experience.in_rows(experience.rewards)
    zero = torch.zeros_like(rewards)
    rows = Steps(
        rewards=rewards,
        values=zero,
        next_values=zero,
        discounts=experience.in_rows(experience.discounts),
        follows=experience.follows,
    )
    return experience.flat(generalised_advantages(rows, trace=1.0).value_targets)
