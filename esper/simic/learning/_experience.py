"""What is learned from: recorded steps as tensors, with what the policy that took them gave each action.

N: steps; S: states, of which the first N were acted in; H: heads; R x T: rows of steps, padded on the right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

#: A place of a row that holds no step.
NO_STEP: Final = -1

#: What a policy sees, by name; all of one length.
Observations = Mapping[str, Tensor]


@dataclass(frozen=True)
class Experience:
    """Whole episodes of recorded steps.

    Raises:
        ValueError: lengths or types do not fit each other, or a figure is not finite.
    """

    #: Of each state, [S, ...]. The first N were acted in; others were only reached, where an episode was cut off.
    observations: Observations
    #: Of each head, bool [N, actions]: what was allowed.
    masks: tuple[Tensor, ...]
    #: Which action of each head was taken, int64 [N, H].
    chosen: Tensor
    #: Log probability of the actions taken under the policy that took them, as it was logged, [N].
    log_behaviour: Tensor
    #: [N], in the log's own scale.
    rewards: Tensor
    #: [N], in 0..1: gamma to the power of the epochs that a step lasted; 0.0 where the episode terminated.
    discounts: Tensor
    #: int64 [N]: which state was reached; any where the discount is 0.0.
    reached: Tensor
    #: int64 [R, T]: steps in their order, NO_STEP in the padding.
    rows: Tensor
    #: bool [R, T]: whether the row's next step is the next one of the same episode.
    follows: Tensor
    #: Of each head, [N, actions]: all that the policy gave, where it was logged; else nothing.
    behaviour: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        steps = len(self.rewards)
        lengths = {len(each) for each in (self.chosen, self.log_behaviour, self.discounts, self.reached, *self.masks)}
        if lengths | {len(each) for each in self.behaviour} != {steps}:
            raise ValueError(f"{steps} rewards, but {sorted(lengths)} of other things")
        if not self.masks or self.chosen.shape != (steps, len(self.masks)):
            raise ValueError(f"{len(self.masks)} heads, but actions of shape {tuple(self.chosen.shape)}")
        if self.behaviour and len(self.behaviour) != len(self.masks):
            raise ValueError(f"{len(self.masks)} heads, but probabilities of {len(self.behaviour)}")
        states = {len(each) for each in self.observations.values()}
        if len(states) != 1 or (steps and not steps <= min(states)):
            raise ValueError(f"{steps} steps, but observations of {sorted(states)} states")
        if steps and not 0 <= int(self.reached.min()) <= int(self.reached.max()) < min(states):
            raise ValueError("a step reached a state that nobody observed")
        if self.rows.shape != self.follows.shape or sorted(self.rows[self.rows != NO_STEP].tolist()) != list(
            range(steps)
        ):
            raise ValueError("every step must stand in the rows once")
        for name, figures in (("reward", self.rewards), ("log probability", self.log_behaviour)):
            if not bool(torch.isfinite(figures).all()):
                raise ValueError(f"a {name} is not finite")

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def episodes(self) -> int:
        """How many episodes the rows hold."""
        return int(((self.rows != NO_STEP) & ~self.follows).sum())

    def in_rows(self, figures_N: Tensor, *, padding: float = 0.0) -> Tensor:
        """Return a figure of each step in the rows, [R, T]."""
        return torch.where(self.rows == NO_STEP, padding, figures_N[self.rows.clamp(min=0)])

    def flat(self, figures_RT: Tensor) -> Tensor:
        """Return the rows' figures by step, [N]: the way back of `in_rows`."""
        held = self.rows != NO_STEP
        flat = figures_RT.new_empty(len(self))
        flat[self.rows[held]] = figures_RT[held]
        return flat

    def scaled(self, factor: float) -> Experience:
        """Return the same with all rewards times `factor`."""
        return replace(self, rewards=self.rewards * factor)


def rows_of(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return rows and follows for episodes of these lengths, in order, a row for each; see `Experience`.

    Raises:
        ValueError: there is none, or one has no step.
    """
    if not lengths or min(lengths) < 1:
        raise ValueError("an episode has a step at least")
    lengths_R1 = torch.tensor(lengths).unsqueeze(1)
    starts_R1 = lengths_R1.cumsum(0) - lengths_R1
    places_T = torch.arange(max(lengths))
    rows = torch.where(places_T < lengths_R1, starts_R1 + places_T, NO_STEP)
    return rows, places_T < lengths_R1 - 1


def return_scale(experience: Experience) -> float:
    """Return one over the standard deviation of the discounted returns from every step: what rewards are scaled by.

    The mean stays, which says what an episode is worth. 1.0 where no return differs.
    """
    rewards, discounts = experience.in_rows(experience.rewards), experience.in_rows(experience.discounts)
    returns, later = torch.empty_like(rewards), torch.zeros_like(rewards[:, 0])
    for place in range(rewards.shape[1] - 1, -1, -1):
        later = rewards[:, place] + discounts[:, place] * experience.follows[:, place] * later
        returns[:, place] = later
    spread = float(experience.flat(returns).std(correction=0))
    return 1.0 / spread if spread > 0.0 else 1.0
