"""Recorded steps as a policy sees them: how likely it would have taken them, and what it thinks of their states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from esper.simic.evaluation._estimates import Episodes
from esper.simic.learning import NO_STEP, ActorCritic, Experience, masked_log_probabilities, taken


@dataclass(frozen=True)
class Seen:
    """Episodes under a policy, with the values that it gives their states, in the log's own scale; all [R, T]."""

    episodes: Episodes
    values: Tensor
    next_values: Tensor


def as_seen(policy: ActorCritic, experience: Experience, *, value_scale: float = 1.0) -> Seen:
    """Return the episodes of `experience` under a policy.

    Args:
        policy: Judges every state once.
        experience: Whole episodes, a row each.
        value_scale: What rewards were multiplied by when the policy's critic learned.

    Raises:
        ValueError: a row holds more than one episode.
    """
    if not bool((experience.follows[:, :-1] == (experience.rows[:, 1:] != NO_STEP)).all()):
        raise ValueError("a row holds more than one episode")
    steps = len(experience)
    with torch.no_grad():
        judged = policy(experience.observations)
        heads = [
            masked_log_probabilities(logits[:steps], mask)
            for logits, mask in zip(judged.logits, experience.masks, strict=True)
        ]
    log_ratios = taken(heads, experience.chosen) - experience.log_behaviour
    values = judged.values.double() / value_scale
    return Seen(
        Episodes(
            log_ratios=experience.in_rows(log_ratios.double()),
            rewards=experience.in_rows(experience.rewards.double()),
            discounts=experience.in_rows(experience.discounts.double()),
            held=experience.rows != NO_STEP,
        ),
        values=experience.in_rows(values[:steps]),
        next_values=experience.in_rows(values[experience.reached]),
    )
