"""What learns in Simic, on a problem that everybody knows: CartPole-v1 within 100,000 steps.

python -m benchmarks.simic [--seeds 10] [--processes 2] [--json]

Eight environments side by side, rounds of 32 steps in each, the settings that rl-baselines3-zoo publishes for PPO there
(20 passes, minibatches of 256, gamma 0.98, lambda 0.8, rates and clip falling to 0). A seed counts as solved where the
policy that stands at the end reaches a mean of 475 over 100 fresh episodes, always taking what it likes best. Written
to results/simic.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Final

import gymnasium
import torch
from torch import Tensor

from benchmarks._collecting import Collector, Mlp
from benchmarks._report import Claim, at_least, at_most, report
from esper.core.clock import SYSTEM_CLOCK
from esper.simic.learning import Settings, improve

_STEPS: Final = 100_000
_ENVIRONMENTS, _ROUND_STEPS, _GAMMA = 8, 32, 0.98
_SOLVED, _EPISODES = 475.0, 100
_RATE: Final = 1e-3
_SETTINGS: Final = Settings(epochs=20, minibatch_steps=256, trace=0.8, clip=0.2)
_SECONDS: Final = 90.0


class CartPole:
    """Gymnasium's CartPole-v1 as the collector wants it: two actions, states of four figures, at most 500 steps."""

    actions = 2

    def __init__(self, seed: int) -> None:
        self._environment = gymnasium.make("CartPole-v1")
        self._seed: int | None = seed

    def reset(self) -> Tensor:
        """Begin an episode; the first one seeds the stream that all draw from."""
        state, _ = self._environment.reset(seed=self._seed)
        self._seed = None
        return torch.from_numpy(state)

    def step(self, action: int) -> tuple[Tensor, float, bool, bool]:
        """Take a step."""
        state, reward, terminated, truncated, _ = self._environment.step(action)
        return torch.from_numpy(state), float(reward), terminated, truncated

    def mask(self) -> Tensor:
        """Everything is allowed."""
        return torch.ones(self.actions, dtype=torch.bool)


def solve(seed: int, *, steps: int) -> dict[str, Any]:
    """Train one policy, and try it on fresh episodes."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    began = SYSTEM_CLOCK.monotonic()
    policy = Mlp(4, 2)
    optimizer = torch.optim.Adam(policy.parameters(), lr=_RATE, eps=1e-5)
    generator = torch.Generator().manual_seed(seed)
    collector = Collector(lambda index: CartPole(1_000 * seed + index), _ENVIRONMENTS, generator)
    rounds = steps // (_ENVIRONMENTS * _ROUND_STEPS)
    for done in range(rounds):
        left = 1.0 - done / rounds
        optimizer.param_groups[0]["lr"] = _RATE * left
        experience = collector.collect(policy, _ROUND_STEPS, gamma=_GAMMA)
        settings = replace(_SETTINGS, clip=_SETTINGS.clip * left)
        improve(policy, optimizer, experience, settings, generator=generator, on_policy=True)
    seconds = SYSTEM_CLOCK.monotonic() - began
    returns = [_tried(policy, CartPole(1_000_000 + 1_000 * seed + index)) for index in range(_EPISODES)]
    return {"seed": seed, "mean": statistics.mean(returns), "worst": min(returns), "seconds": round(seconds, 1)}


def _tried(policy: Mlp, environment: CartPole) -> float:
    """Return what one episode returns under the policy's favourite actions."""
    state, total, over = environment.reset(), 0.0, False
    while not over:  # An episode is cut off at 500 steps.
        with torch.no_grad():
            action = int(policy({"state": state.unsqueeze(0)}).logits[0].argmax())
        state, reward, terminated, truncated = environment.step(action)
        total, over = total + reward, terminated or truncated
    return total


def main() -> int:
    """Train all seeds and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=_STEPS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.processes) as pool:
        found = list(pool.map(partial(solve, steps=arguments.steps), range(arguments.seeds)))
    solved = sum(one["mean"] >= _SOLVED for one in found)
    seconds = statistics.median(one["seconds"] for one in found)
    claims: list[Claim] = [
        at_least("cartpole_seeds_solved", float(solved), "seeds", peer=float(len(found)), bound=0.9),
        at_most("cartpole_seconds_a_seed", seconds, "s", peer=_SECONDS, bound=1.0),
    ]
    details = {"arguments": vars(arguments), "torch": torch.__version__, "seeds": found}
    return report("simic", claims, details, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
