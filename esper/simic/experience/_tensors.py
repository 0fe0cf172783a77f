"""From joined episodes to the tensors that learning takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from esper.core.policy import BLENDS, HEADS, NONE, OPERATIONS, Encoded, layout_of, together
from esper.simic.experience._columns import DecisionColumns, Flags, Floats, HeadColumns, Ints
from esper.simic.experience._episodes import Joined
from esper.simic.experience._registry import Registry
from esper.simic.experience._rewards import MEASURED, RewardWeights, parts_of, weighted
from esper.simic.learning import Experience, rows_of


@dataclass(frozen=True)
class _Heads:
    """All heads of N steps, as wide as the widest."""

    masks: tuple[Flags, ...]
    shares: tuple[Floats, ...]
    chosen: Ints  # [N, H]


def experience_of(
    decisions: Sequence[DecisionColumns],
    steps: Joined,
    registry: Registry,
    weights: RewardWeights,
    *,
    gamma: float,
) -> Experience:
    """Return the steps as tensors, float32 and on the CPU, an episode a row.

    Observations are those of `PolicyNetwork.encoded`, with `operation` and `slot` as taken. A run that failed ends an
    episode that is cut off: its value is asked of its last state.

    Raises:
        ValueError: there is no step.
    """
    if not len(steps.places):
        raise ValueError("there is no step to learn from")
    kinds = np.repeat(np.arange(len(decisions)), [len(part) for part in decisions])
    starts = np.cumsum([0, *(len(part) for part in decisions)])
    mine = [np.flatnonzero(kinds[steps.places] == kind) for kind in range(len(decisions))]
    used = [kind for kind in range(len(decisions)) if len(mine[kind])]
    rows = {kind: steps.places[mine[kind]] - starts[kind] for kind in used}
    back = np.argsort(np.concatenate([mine[kind] for kind in used]), kind="stable")
    encoded = together([_encoded(decisions[kind], rows[kind]) for kind in used])
    width = encoded.held.shape[1]
    heads = _together([_heads(decisions[kind], rows[kind], registry, width) for kind in used])
    observations = {
        "run": torch.from_numpy(encoded.run[back]).float(),
        "past": torch.from_numpy(encoded.past[back]).float(),
        "past_known": torch.from_numpy(encoded.past_known[back]),
        "slots": torch.from_numpy(encoded.slots[back]).float(),
        "codes": torch.from_numpy(encoded.codes[back]),
        "held": torch.from_numpy(encoded.held[back]),
    }
    chosen = torch.from_numpy(heads.chosen[back])
    observations["operation"], observations["slot"] = chosen[:, 0], chosen[:, 1]
    logged = np.concatenate([decisions[kind].log_probabilities[rows[kind]] for kind in used])[back]
    lengths = np.bincount(steps.episode).tolist()
    table, follows = rows_of(lengths)
    count = len(steps.places)
    planned = np.concatenate([_of(decisions[kind], rows[kind], "epochs_planned") for kind in used])[back]
    rewards = weighted(reward_parts(steps, planned), weights)
    lasted = np.where(steps.last, 1, np.r_[steps.epoch[1:], 0] - steps.epoch)
    discounts = np.where(steps.terminated, 0.0, gamma**lasted)
    reached = np.where(steps.last, np.arange(count), np.arange(count) + 1)
    return Experience(
        observations=observations,
        masks=tuple(torch.from_numpy(mask[back]) for mask in heads.masks),
        chosen=chosen,
        log_behaviour=torch.from_numpy(logged).float(),
        rewards=torch.from_numpy(rewards).float(),
        discounts=torch.from_numpy(discounts).float(),
        reached=torch.from_numpy(reached),
        rows=table,
        follows=follows,
        behaviour=tuple(torch.from_numpy(share[back]).float() for share in heads.shares),
    )


def _encoded(part: DecisionColumns, rows: Ints) -> Encoded:
    return layout_of(part.names).encode(part.observations[rows])


def reward_parts(steps: Joined, planned: Floats) -> dict[str, Floats]:
    """Return the unweighted parts of each step's reward, [N]; see `parts_of`."""
    begin = {name: steps.figures[f"{name}_begin"] for name in MEASURED}
    last = np.flatnonzero(steps.last)
    after = {}
    for name in MEASURED:
        values = np.r_[begin[name][1:], np.nan]
        values[last] = steps.figures[f"{name}_end"][last]
        after[name] = values
    starts = np.r_[0, last[:-1] + 1][steps.episode]
    first = {name: values[starts] for name, values in begin.items()}
    return parts_of(begin, after, first | {"epoch": steps.epoch[starts].astype(np.float64), "epochs_planned": planned})


def _of(part: DecisionColumns, rows: Ints, name: str) -> Floats:
    found: Floats = part.observations[rows, part.names.index(name)]
    return found


def _heads(part: DecisionColumns, rows: Ints, registry: Registry, slots: int) -> _Heads:
    """Return the heads of some decisions of a kind, their actions at the places that the registry gives them."""
    by_name = {head.name: head for head in part.heads}
    own = layout_of(part.names).slots
    labels: Mapping[str, dict[str, int]] = {
        "operation": {name: at for at, name in enumerate(OPERATIONS)},
        "slot": {NONE: 0} | {name: at for at, name in enumerate(own, start=1)},
        "blueprint": {NONE: 0} | {option.label: at for at, option in enumerate(registry.options, start=1)},
        "schedule": {NONE: 0} | {name: at for at, name in enumerate(BLENDS, start=1)},
    }
    widths = {"slot": 1 + slots} | {name: len(places) for name, places in labels.items() if name != "slot"}
    found = [_placed(by_name.get(name), rows, labels[name], widths[name]) for name in HEADS]
    return _Heads(
        masks=tuple(mask for mask, _, _ in found),
        shares=tuple(shares for _, shares, _ in found),
        chosen=np.stack([chosen for _, _, chosen in found], axis=1),
    )


def _placed(head: HeadColumns | None, rows: Ints, places: Mapping[str, int], width: int) -> tuple[Flags, Floats, Ints]:
    """Return mask, probabilities and choice of a head with its actions at their places; without a head, "none"."""
    mask, shares = np.zeros((len(rows), width), dtype=np.bool_), np.zeros((len(rows), width))
    if head is None:
        mask[:, 0], shares[:, 0] = True, 1.0
        return mask, shares, np.zeros(len(rows), dtype=np.int64)
    moved = np.array([places.get(action, -1) for action in head.actions])
    for at, place in enumerate(moved):
        if place >= 0:
            mask[:, place] = head.mask[rows, at]
            shares[:, place] = head.probabilities[rows, at]
    return mask, shares, moved[head.chosen[rows]]


def _together(parts: Sequence[_Heads]) -> _Heads:
    return _Heads(
        masks=tuple(np.concatenate(each) for each in zip(*(part.masks for part in parts), strict=True)),
        shares=tuple(np.concatenate(each) for each in zip(*(part.shares for part in parts), strict=True)),
        chosen=np.concatenate([part.chosen for part in parts]),
    )


def unregistered(decisions: Sequence[DecisionColumns], registry: Registry) -> list[Flags]:
    """Return of each kind which decisions could take what the registry lacks, [n] each."""
    found = []
    for part in decisions:
        strange = np.zeros(len(part), dtype=np.bool_)
        known: dict[str, set[str]] = {
            "operation": set(OPERATIONS),
            "blueprint": {NONE, *(option.label for option in registry.options)},
            "schedule": {NONE, *BLENDS},
            "slot": {NONE, *layout_of(part.names).slots},
        }
        for head in part.heads:
            lacking = [at for at, action in enumerate(head.actions) if action not in known.get(head.name, set())]
            if lacking:
                strange |= head.mask[:, lacking].any(axis=1)
        found.append(strange)
    return found
