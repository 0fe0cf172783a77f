"""How long a single decision takes, as a controller makes it: one observation, one head after the other."""

from __future__ import annotations

import torch

from esper.core.clock import SYSTEM_CLOCK
from esper.core.policy import PolicyNetwork
from esper.simic.learning import Experience

_WARM_UP = 20


def timed_decisions(network: PolicyNetwork, experience: Experience, decisions: int) -> list[float]:
    """Return the milliseconds of each decision, asked about the recorded states in turn."""
    found = []
    with torch.inference_mode():
        for number in range(_WARM_UP + decisions):
            place = number % len(experience)
            seen = {name: tensor[place : place + 1] for name, tensor in experience.observations.items()}
            began = SYSTEM_CLOCK.monotonic()
            thoughts = network.think(seen)
            operation = network.operations(thoughts).argmax(dim=-1)
            slot = network.slots(thoughts, operation).argmax(dim=-1)
            network.options(thoughts, slot)
            network.schedules(thoughts, slot)
            network.values(seen)
            found.append((SYSTEM_CLOCK.monotonic() - began) * 1_000.0)
    return found[_WARM_UP:]
