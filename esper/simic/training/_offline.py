"""Learning from a log that does not grow meanwhile."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import nn

from esper.simic.evaluation import as_seen, effective_episodes
from esper.simic.learning import Experience, Progress, Settings, improve, return_scale


class Ended(StrEnum):
    """Why a training ended."""

    #: All rounds were done.
    ROUNDS = "rounds"
    #: One more would have left what the log supports.
    SUPPORT = "support"


@dataclass(frozen=True)
class OfflineSettings:
    """How a candidate is trained from a log; see `Settings` for a round of it."""

    round: Settings = field(
        default_factory=lambda: Settings(minibatch_steps=1_024, behaviour_weight=0.1, kl_target=0.02)
    )
    rounds: int = 20
    learning_rate: float = 3e-4
    #: Share of the episodes that the candidate's importance weights must be worth. Below it no log of this size can
    #: say what a policy is worth, however good it is.
    support_min: float = 0.25


@dataclass(frozen=True)
class Training:
    """What a training did: its rounds, and why it ended. `value_scale`: what the critic's rewards were scaled by."""

    rounds: tuple[Progress, ...]
    ended: Ended
    value_scale: float
    #: Of the policy that came of it, on the episodes that it learned from.
    effective_episodes: float


def train_offline(
    policy: nn.Module, experience: Experience, settings: OfflineSettings, *, generator: torch.Generator
) -> Training:
    """Improve `policy`, an ActorCritic, in place, round by round, for as long as the log can judge what comes of it.

    After each round the importance weights of whole episodes are looked at; the first round after which they are worth
    less than `support_min` of the episodes is taken back, and ends the training. Equal input gives equal bits on one
    machine, as `improve` does.

    Raises:
        ValueError, FloatingPointError: as `improve`.
    """
    scale = return_scale(experience)
    scaled = experience.scaled(scale)
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate, eps=1e-5)
    done: list[Progress] = []
    effective, ended = effective_episodes(as_seen(policy, experience).episodes), Ended.ROUNDS
    for _ in range(settings.rounds):
        kept = copy.deepcopy(policy.state_dict())
        progress = improve(policy, optimizer, scaled, settings.round, generator=generator)
        found = effective_episodes(as_seen(policy, experience).episodes)
        if found < settings.support_min * experience.episodes:
            policy.load_state_dict(kept)
            ended = Ended.SUPPORT
            break
        effective = found
        done.append(progress)
    return Training(tuple(done), ended, scale, effective)
