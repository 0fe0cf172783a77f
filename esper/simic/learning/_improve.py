"""One round of learning from recorded steps: decoupled PPO with V-trace, or advantage-weighted regression.

Read from top to bottom: the settings, the round, its minibatches, one minibatch. On steps that the policy has just
taken itself it is PPO with GAE (Schulman et al., 2017, arXiv 1707.06347; 2016, arXiv 1506.02438); on others the
policy that took them serves the importance weights and the one at the round's beginning the clip (Hilton, Cobbe and
Schulman, 2021, arXiv 2110.00641), with the targets of V-trace (Espeholt et al., 2018, arXiv 1802.01561).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from esper.core.policy import Judgement
from esper.simic.learning._experience import Experience, Observations
from esper.simic.learning._heads import divergence, entropy, masked_log_probabilities, taken
from esper.simic.learning._objective import advantage_weighted, decoupled_ppo, explained_variance, value_loss
from esper.simic.learning._returns import Returns, Steps, generalised_advantages, v_trace

#: Keeps the division by a minibatch's spread finite where its advantages are alike.
_SPREAD_MIN: Final = 1e-8


class Objective(StrEnum):
    """How the actor learns."""

    PPO = "ppo"
    AWR = "awr"


class ActorCritic(Protocol):
    """A policy that learns; a `torch.nn.Module`."""

    def __call__(self, observations: Observations) -> Judgement:
        """Judge states."""


@dataclass(frozen=True)
class Settings:
    """How a round learns; the defaults are for logs that another policy collected."""

    objective: Objective = Objective.PPO
    #: Passes over all steps, at most.
    epochs: int = 4
    minibatch_steps: int = 256
    clip: float = 0.2
    #: lambda of advantages and targets.
    trace: float = 0.95
    #: Cap of importance weights (rho bar and c bar).
    weight_max: float = 1.0
    value_weight: float = 0.5
    #: Of KL(mu || pi), the divergence from the policy that collected the steps, in nats.
    behaviour_weight: float = 0.0
    #: Of the entropy, which is to be large.
    entropy_weight: float = 0.0
    #: In nats: below it entropy is asked for with weight 1.
    entropy_floor: float = 0.0
    #: Where the mean KL from the round's first policy goes above it after a pass, the round ends.
    kl_target: float = math.inf
    gradient_norm_max: float = 0.5
    #: AWR's, in units of the advantages' spread: small imitates only the best actions, large all.
    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What learning showed; means over steps, in nats where they are divergences and entropies."""

    policy_loss: float
    value_loss: float
    kl_proximal: float
    #: 0.0 where the log does not hold all that the behaviour policy gave.
    kl_behaviour: float
    entropy: float
    clip_share: float
    #: Of the importance weights, in 0..1.
    effective_share: float


@dataclass(frozen=True, kw_only=True)
class Progress(Figures):
    """What a round did; the figures are those of its last pass."""

    passes: int
    #: Of the targets' variance, by the critic at the round's beginning; NaN where there is none.
    explained_variance: float
    #: The largest norm of a gradient before it was clipped.
    gradient_norm: float


@dataclass(frozen=True, kw_only=True)
class _Minibatch(Figures):
    """What one minibatch showed."""

    steps: int
    gradient_norm: float


@dataclass(frozen=True)
class _Round:
    """What holds for a whole round, by step."""

    experience: Experience
    settings: Settings
    log_proximal: Tensor
    log_behaviour: Tensor
    values: Tensor
    returns: Returns


def improve(
    policy: ActorCritic,
    optimizer: torch.optim.Optimizer,
    experience: Experience,
    settings: Settings,
    *,
    generator: torch.Generator,
    on_policy: bool = False,
) -> Progress:
    """Let the policy learn from `experience` for one round; what it was at the beginning is the proximal policy.

    Args:
        policy: Learns in place. It must answer alike whenever it is asked of the same states: no dropout.
        optimizer: Of its parameters.
        experience: Whole episodes; advantages are normalised in each minibatch, rewards are not.
        settings: How.
        generator: Draws the order of the steps, and nothing else does: equal input gives equal bits on one machine.
        on_policy: Whether this very policy took all steps. Then every importance weight is exactly 1.0.

    Raises:
        ValueError: there is no step, or no behaviour policy to keep near to; a step was taken that its mask forbids,
            or that this policy never takes.
        FloatingPointError: a loss or a gradient is not finite; the policy stands where it stood before that step.
    """
    if not len(experience):
        raise ValueError("there is no step to learn from")
    if settings.behaviour_weight and not experience.behaviour:
        raise ValueError("the divergence from the behaviour policy weighs, and the log does not hold its probabilities")
    first = torch.randperm(len(experience), generator=generator)
    known = _known(policy, experience, settings, first, on_policy=on_policy)
    explained = explained_variance(known.values, known.returns.value_targets)
    done: list[_Minibatch] = []
    passes = 0
    for index in range(settings.epochs):
        order = first if index == 0 else torch.randperm(len(experience), generator=generator)
        done = [_learn(policy, optimizer, known, steps) for steps in torch.split(order, settings.minibatch_steps)]
        passes = index + 1
        if _mean(done, "kl_proximal") > settings.kl_target:
            break
    return Progress(
        passes=passes,
        **{field.name: _mean(done, field.name) for field in fields(Figures)},
        explained_variance=explained,
        gradient_norm=max(each.gradient_norm for each in done),
    )


def _known(
    policy: ActorCritic, experience: Experience, settings: Settings, order: Tensor, *, on_policy: bool
) -> _Round:
    """Judge every step by the policy as it stands; see `improve` for the errors.

    In the minibatches of the first pass: a matrix product of another number of rows may end in other bits, and the
    first ratio is to be exactly 1.0.
    """
    steps, states = len(experience), len(next(iter(experience.observations.values())))
    log_proximal, values = experience.rewards.new_empty(steps), experience.rewards.new_empty(states)
    with torch.no_grad():
        for part in torch.split(order, settings.minibatch_steps):
            judged = policy(_at(experience.observations, part))
            log_proximal[part] = taken(_log_heads(judged, experience, part), experience.chosen[part])
            values[part] = judged.values
        for part in torch.split(torch.arange(steps, states), settings.minibatch_steps):
            values[part] = policy(_at(experience.observations, part)).values
    if not bool(torch.isfinite(log_proximal).all()):
        raise ValueError("a step was taken that its mask forbids or that this policy gives no probability")
    log_behaviour = log_proximal if on_policy else experience.log_behaviour
    rows = Steps(
        rewards=experience.in_rows(experience.rewards),
        values=experience.in_rows(values[:steps]),
        next_values=experience.in_rows(values[experience.reached]),
        discounts=experience.in_rows(experience.discounts),
        follows=experience.follows,
    )
    if on_policy or settings.objective is Objective.AWR:  # AWR asks how good actions are under who took them.
        found = generalised_advantages(rows, trace=settings.trace)
    else:
        ratios = experience.in_rows((log_proximal - log_behaviour).exp(), padding=1.0)
        found = v_trace(
            rows, ratios, trace=settings.trace, ratio_max=settings.weight_max, trace_ratio_max=settings.weight_max
        )
    returns = Returns(experience.flat(found.advantages), experience.flat(found.value_targets))
    return _Round(experience, settings, log_proximal, log_behaviour, values[:steps], returns)


def _learn(policy: ActorCritic, optimizer: torch.optim.Optimizer, known: _Round, steps: Tensor) -> _Minibatch:
    """Take one step of the optimiser on a minibatch."""
    experience, settings = known.experience, known.settings
    judged = policy(_at(experience.observations, steps))
    heads = _log_heads(judged, experience, steps)
    log_pi = taken(heads, experience.chosen[steps])
    advantages = _normalised(known.returns.advantages[steps])
    surrogate = decoupled_ppo(
        log_pi,
        known.log_proximal[steps],
        known.log_behaviour[steps],
        advantages,
        clip=settings.clip,
        weight_max=settings.weight_max,
    )
    actor = surrogate.loss
    if settings.objective is Objective.AWR:
        actor = advantage_weighted(log_pi, advantages, temperature=settings.temperature)
    critic = value_loss(judged.values, known.returns.value_targets[steps])
    spread = entropy(heads)
    away = torch.zeros(())
    if experience.behaviour:
        away = divergence([head[steps] for head in experience.behaviour], heads).mean()
    loss = actor + settings.value_weight * critic - settings.entropy_weight * spread.mean()
    loss = loss + (settings.entropy_floor - spread).clamp(min=0.0).mean()
    if settings.behaviour_weight:
        loss = loss + settings.behaviour_weight * away
    norm = take_step(optimizer, loss, settings.gradient_norm_max)
    return _Minibatch(
        steps=len(steps),
        policy_loss=float(actor.detach()),
        value_loss=float(critic.detach()),
        kl_proximal=float(surrogate.kl_proximal),
        kl_behaviour=float(away.detach()),
        entropy=float(spread.detach().mean()),
        clip_share=float(surrogate.clip_share),
        effective_share=float(surrogate.effective_share),
        gradient_norm=norm,
    )


def take_step(optimizer: torch.optim.Optimizer, loss: Tensor, norm_max: float) -> float:
    """Take a step against the loss's gradient, clipped; return the gradient's norm."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # unannotated in torch
    norm = float(nn.utils.clip_grad_norm_(parameters, norm_max))
    found = float(loss.detach())
    if not math.isfinite(norm) or not math.isfinite(found):
        optimizer.zero_grad()
        raise FloatingPointError(f"the loss is {found}, the norm of its gradient {norm}")
    optimizer.step()
    return norm


def _log_heads(judged: Judgement, experience: Experience, steps: Tensor) -> list[Tensor]:
    return [
        masked_log_probabilities(logits, mask[steps])
        for logits, mask in zip(judged.logits, experience.masks, strict=True)
    ]


def _normalised(advantages_B: Tensor) -> Tensor:
    if len(advantages_B) < 2:  # One alone has no spread.
        return advantages_B
    return (advantages_B - advantages_B.mean()) / (advantages_B.std(correction=0) + _SPREAD_MIN)


def _at(observations: Observations, steps: Tensor) -> Observations:
    return {name: tensor[steps] for name, tensor in observations.items()}


def _mean(done: list[_Minibatch], name: str) -> float:
    return math.fsum(getattr(each, name) * each.steps for each in done) / sum(each.steps for each in done)
