"""Five environments that each need one thing more than the one before (Jones, andyljones.com/posts/rl-debugging)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Probe(ABC):
    """An environment of two actions and states of one figure; `length` steps an episode."""

    seed: int
    actions: int = 2
    length: int = 1

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)
        self._done = 0
        self._state = torch.zeros(1)

    def reset(self) -> Tensor:
        """Begin with a state that is -1 or 1, but where a probe says otherwise."""
        self._done = 0
        self._state = self._first()
        return self._state

    def step(self, action: int) -> tuple[Tensor, float, bool, bool]:
        """Take a step; the episode terminates after `length` of them."""
        reward = self._reward(action)
        self._done += 1
        self._state = self._next()
        return self._state, reward, self._done >= self.length, False

    def mask(self) -> Tensor:
        """Everything is allowed."""
        return torch.ones(self.actions, dtype=torch.bool)

    def _first(self) -> Tensor:
        return torch.randint(2, (1,), generator=self._generator) * 2.0 - 1.0

    def _next(self) -> Tensor:
        return self._state

    @abstractmethod
    def _reward(self, action: int) -> float:
        """Return what an action is worth now."""


class ConstantReward(Probe):
    """Always 1: does the critic learn a constant?"""

    def _reward(self, action: int) -> float:
        return 1.0


class ObservedReward(Probe):
    """The state itself: does the critic look at it?"""

    def _reward(self, action: int) -> float:
        return float(self._state)


@dataclass
class DelayedReward(Probe):
    """Two steps, 1 at the end: is the reward passed back, discounted, and not beyond the end?"""

    length: int = 2

    def _first(self) -> Tensor:
        return torch.tensor([-1.0])

    def _next(self) -> Tensor:
        return torch.tensor([1.0])

    def _reward(self, action: int) -> float:
        return float(self._state > 0)


class ChosenReward(Probe):
    """The action decides: does the actor learn?"""

    def _reward(self, action: int) -> float:
        return float(action)


class FittingReward(Probe):
    """State and action must fit: do both learn together?"""

    def _reward(self, action: int) -> float:
        return float((action == 1) == (float(self._state) > 0))


@dataclass
class ForbiddenReward(Probe):
    """The best of three actions is forbidden in every other state."""

    actions: int = 3

    def mask(self) -> Tensor:
        return torch.tensor([True, True, float(self._state) > 0])

    def _reward(self, action: int) -> float:
        return float(action)
