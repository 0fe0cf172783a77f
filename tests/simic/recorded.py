"""Episodes in which one thing pays, as the tensors that the log would give: who germinates at once gets more."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from esper.core.policy import HEADS, LAYOUT_CODES, OPERATIONS, OptionEntry, layout_of
from esper.simic.experience import Recorded, Registry
from esper.simic.learning import Experience, rows_of
from tests.core.policy.support import observation

REGISTRY = Registry(
    (
        OptionEntry(blueprint_id="BP009", parameters=(("depth", 1.0),), layouts=("vector",)),
        OptionEntry(blueprint_id="BP021", parameters=(("hidden_multiple", 2.0),), layouts=("vector",)),
    ),
    (9, 21),
)
STEPS = 4
assert LAYOUT_CODES["vector"] == 1.0


def recorded(episodes: int, *, seed: int, sign: float = 1.0) -> Recorded:
    """Return episodes of STEPS steps in which germinating pays `sign` with BP021 and half of it with BP009.

    Whoever took the steps germinates with probability 0.5, in one of two slots and with one of two options, evenly.
    """
    stream = torch.Generator().manual_seed(seed)
    count = episodes * STEPS
    seen = [observation(epochs=epoch) for epoch in range(1, STEPS + 1)]
    encoded = layout_of(seen[0].names).encode(np.asarray([each.values for each in seen] * episodes))
    acts = torch.rand(count, generator=stream) < 0.5
    slot = torch.where(acts, 1 + (torch.rand(count, generator=stream) < 0.5).long(), 0)
    option = torch.where(acts, 1 + (torch.rand(count, generator=stream) < 0.5).long(), 0)
    chosen = torch.stack([acts.long(), slot, option, torch.zeros(count, dtype=torch.int64)], dim=1)
    masks, shares = _heads(acts, count)
    rewards = sign * torch.where(option == 2, 0.1, torch.where(option == 1, 0.05, 0.0))
    noise = 0.02 * torch.randn(count, generator=stream)
    rows, follows = rows_of([STEPS] * episodes)
    last = (torch.arange(count) % STEPS) == STEPS - 1
    experience = Experience(
        observations={
            "run": torch.from_numpy(encoded.run).float(),
            "past": torch.from_numpy(encoded.past).float(),
            "past_known": torch.from_numpy(encoded.past_known),
            "slots": torch.from_numpy(encoded.slots).float(),
            "codes": torch.from_numpy(encoded.codes),
            "held": torch.from_numpy(encoded.held),
            "operation": chosen[:, 0],
            "slot": chosen[:, 1],
        },
        masks=masks,
        chosen=chosen,
        log_behaviour=torch.where(acts, 0.125, 0.5).log(),
        rewards=(rewards + noise).float(),
        discounts=torch.where(last, 0.0, 1.0),
        reached=torch.where(last, torch.arange(count), torch.arange(count) + 1),
        rows=rows,
        follows=follows,
        behaviour=shares,
    )
    return Recorded(experience, REGISTRY, (), tuple(f"run-{number}" for number in range(episodes)), Counter())


def _heads(acts: torch.Tensor, count: int) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    operation = torch.zeros(count, len(OPERATIONS), dtype=torch.bool)
    operation[:, :2] = True
    later = torch.zeros(count, 3, dtype=torch.bool)
    later[:, 0], later[:, 1:] = ~acts, acts.unsqueeze(1)
    schedule = torch.zeros(count, 4, dtype=torch.bool)
    schedule[:, 0] = True
    masks = (operation, later, later, schedule)
    assert len(masks) == len(HEADS)
    return masks, tuple(mask.float() / mask.sum(dim=1, keepdim=True) for mask in masks)
