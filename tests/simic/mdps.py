"""Random decision processes whose values are known exactly, and logs of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from esper.simic.learning import Experience, Judgement, Observations, rows_of

STATES, ACTIONS, HORIZON = 12, 5, 15


@dataclass(frozen=True)
class Mdp:
    """Starts in state 0, ends after HORIZON steps; rewards are noisy."""

    #: [states, actions, states]
    moves: Tensor
    #: [states, actions]
    rewards: Tensor
    noise: float

    @classmethod
    def random(cls, seed: int, *, noise: float = 0.5) -> Mdp:
        """Draw one: three possible next states for each action, a few actions that pay."""
        generator = torch.Generator().manual_seed(seed)
        moves = torch.zeros(STATES, ACTIONS, STATES, dtype=torch.float64)
        for state in range(STATES):
            for action in range(ACTIONS):
                to = torch.randperm(STATES, generator=generator)[:3]
                moves[state, action, to] = torch.rand(3, generator=generator, dtype=torch.float64) + 0.1
        rewards = torch.rand(STATES, ACTIONS, generator=generator, dtype=torch.float64).pow(3)
        return cls(moves / moves.sum(-1, keepdim=True), rewards, noise)

    def value(self, policy: Tensor) -> float:
        """Return what an episode returns under a policy [states, actions], exactly."""
        return float(self.values(policy)[0, 0])

    def values(self, policy: Tensor) -> Tensor:
        """Return the value of each state with so many steps done, [HORIZON + 1, states]."""
        found = torch.zeros(HORIZON + 1, STATES, dtype=torch.float64)
        for done in range(HORIZON - 1, -1, -1):
            found[done] = (policy * (self.rewards + self.moves @ found[done + 1])).sum(-1)
        return found

    def best(self) -> tuple[float, Tensor]:
        """Return what the best policy returns, and the action values with all steps to go, [states, actions]."""
        value = torch.zeros(STATES, dtype=torch.float64)
        for _ in range(HORIZON):
            actions = self.rewards + self.moves @ value
            value = actions.max(-1).values
        return float(value[0]), actions

    def normalised(self, value: float) -> float:
        """Return 0.0 for what the uniform policy returns and 1.0 for the best."""
        low = self.value(uniform())
        return (value - low) / (self.best()[0] - low)

    def behaviour(self, seed: int, *, mixed: float = 0.03) -> Tensor:
        """Return a policy of middling worth that gives every action `mixed` / ACTIONS at least."""
        generator = torch.Generator().manual_seed(seed)
        actions = self.best()[1]
        spread = actions.std(-1, keepdim=True)
        noisy = actions / spread + 1.2 * torch.randn(actions.shape, generator=generator, dtype=torch.float64)
        return (1 - mixed) * torch.softmax(1.5 * noisy, -1) + mixed / ACTIONS

    def log(self, policy: Tensor, *, steps: int, seed: int) -> Experience:
        """Return whole episodes of about so many steps, taken by `policy`."""
        generator = torch.Generator().manual_seed(seed)
        episodes = max(1, steps // HORIZON)
        state = torch.zeros(episodes, dtype=torch.int64)
        states, chosen, rewards = [], [], []
        for _ in range(HORIZON):
            action = torch.multinomial(policy[state], 1, generator=generator).squeeze(1)
            noise = self.noise * torch.randn(episodes, generator=generator, dtype=torch.float64)
            states.append(state)
            chosen.append(action)
            rewards.append(self.rewards[state, action] + noise)
            state = torch.multinomial(self.moves[state, action], 1, generator=generator).squeeze(1)
        at = torch.stack(states, 1).flatten()
        taken = torch.stack(chosen, 1).flatten()
        done = torch.arange(HORIZON).repeat(episodes)
        last = done == HORIZON - 1
        rows, follows = rows_of([HORIZON] * episodes)
        return Experience(
            observations={"state": at, "done": done},
            masks=(torch.ones(len(at), ACTIONS, dtype=torch.bool),),
            chosen=taken.unsqueeze(1),
            log_behaviour=policy[at, taken].log().float(),
            rewards=torch.stack(rewards, 1).flatten().float(),
            discounts=(~last).float(),
            reached=torch.where(last, 0, torch.arange(len(at)) + 1).clamp(max=len(at) - 1),
            rows=rows,
            follows=follows,
            behaviour=(policy[at].float(),),
        )


def uniform() -> Tensor:
    """Return the policy that likes everything alike."""
    return torch.full((STATES, ACTIONS), 1.0 / ACTIONS, dtype=torch.float64)


class Table(nn.Module):
    """A policy with a row of logits for each state, and a value for each state and number of steps done."""

    def __init__(self, policy: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(policy.log().float())
        self.values = nn.Parameter(torch.zeros(HORIZON, STATES))

    def forward(self, observations: Observations) -> Judgement:
        state = observations["state"]
        return Judgement((self.logits[state],), self.values[observations["done"], state])

    def policy(self) -> Tensor:
        """Return the probabilities, [states, actions]."""
        return torch.softmax(self.logits.detach().double(), -1)
