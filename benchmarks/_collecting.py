"""Steps taken in environments by the policy that learns, which is a small network of actor and critic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from esper.simic.learning import Experience, Judgement, Observations, masked_log_probabilities, taken


class Environment(Protocol):
    """One environment; states are tensors of equal shape, actions whole numbers."""

    actions: int

    def reset(self) -> Tensor:
        """Begin an episode; return its first state."""

    def step(self, action: int) -> tuple[Tensor, float, bool, bool]:
        """Return the next state, the reward, and whether the episode terminated or was cut off."""

    def mask(self) -> Tensor:
        """Return which actions are allowed now."""


def layer(inputs: int, outputs: int, *, gain: float) -> nn.Linear:
    """Return an orthogonal layer without bias terms to begin with (of the 37 details of PPO)."""
    made = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(made.weight, gain)
    nn.init.zeros_(made.bias)
    return made


class Mlp(nn.Module):
    """An actor and a critic with trunks of their own."""

    def __init__(self, inputs: int, actions: int, *, width: int = 64) -> None:
        super().__init__()

        def trunk(outputs: int, *, gain: float) -> nn.Sequential:
            hidden = [layer(inputs, width, gain=2**0.5), nn.Tanh(), layer(width, width, gain=2**0.5), nn.Tanh()]
            return nn.Sequential(*hidden, layer(width, outputs, gain=gain))

        self.actor = trunk(actions, gain=0.01)
        self.critic = trunk(1, gain=1.0)

    def forward(self, observations: Observations) -> Judgement:
        state = observations["state"]
        return Judgement((self.actor(state),), self.critic(state).squeeze(-1))


@dataclass
class Collector:
    """Takes steps in several environments side by side, each a row."""

    make: Callable[[int], Environment]
    count: int
    generator: torch.Generator

    def __post_init__(self) -> None:
        self._all = [self.make(index) for index in range(self.count)]
        self._states = [each.reset() for each in self._all]

    def collect(self, policy: Callable[[Observations], Judgement], steps: int, *, gamma: float) -> Experience:
        """Let the policy take `steps` steps in each environment."""
        log: list[tuple[Tensor, ...]] = []
        reached: list[list[Tensor]] = []
        for _ in range(steps):
            states = torch.stack(self._states)
            masks = torch.stack([each.mask() for each in self._all])
            with torch.no_grad():
                head = masked_log_probabilities(policy({"state": states}).logits[0], masks)
            chosen = torch.multinomial(head.exp(), 1, generator=self.generator)
            outcomes = [self._step(index, int(action)) for index, action in enumerate(chosen.flatten().tolist())]
            after, rewards, terminated, over = zip(*outcomes, strict=True)
            reached.append(list(after))
            log.append(
                (states, masks, chosen, taken([head], chosen), torch.tensor(rewards), torch.tensor(terminated),
                 torch.tensor(over), head.exp())
            )  # fmt: skip
        return self._experience(log, reached, gamma)

    def _step(self, index: int, action: int) -> tuple[Tensor, float, bool, bool]:
        state, reward, terminated, truncated = self._all[index].step(action)
        over = terminated or truncated
        self._states[index] = self._all[index].reset() if over else state
        return state, reward, terminated, over

    def _experience(
        self, log: Sequence[tuple[Tensor, ...]], reached: Sequence[Sequence[Tensor]], gamma: float
    ) -> Experience:
        columns = [torch.stack(each, dim=1) for each in zip(*log, strict=True)]  # [environments, steps, ...]
        states, masks, chosen, log_behaviour, rewards, terminated, over, behaviour = (c.flatten(0, 1) for c in columns)
        steps = len(log)
        follows = ~over.view(self.count, steps)
        follows[:, -1] = False
        rows = torch.arange(len(rewards)).view(self.count, steps)
        after = torch.stack([torch.stack(list(each)) for each in reached], dim=1).flatten(0, 1)
        return Experience(
            observations={"state": torch.cat([states, after])},
            masks=(masks,),
            chosen=chosen,
            log_behaviour=log_behaviour,
            rewards=rewards.float(),
            discounts=torch.where(terminated, 0.0, gamma),
            reached=torch.arange(len(rewards)) + len(rewards),
            rows=rows,
            follows=follows,
            behaviour=(behaviour,),
        )
