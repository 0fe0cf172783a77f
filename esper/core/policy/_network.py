"""The network of a learned policy: what it thinks of a run, of each slot, and of the epochs before.

N: observations; S: slots; T: epochs, the present one last; A: actions of a head; D: width. Actor and critic have trunks
of their own. Slots are treated alike wherever they stand, so that a host of any size can be decided for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from esper.core.policy._layout import PAST_WIDTH, RUN_WIDTH, SLOT_WIDTH, Encoded
from esper.core.policy._schema import BLENDS, LAYOUT_CODES, OPERATIONS, PAST_EPOCHS
from esper.core.policy._specification import Specification
from esper.leyline import messages as ly

#: Bound of normalised figures: one that was never seen so large must not drown all others.
_FIGURE_MAX: Final = 10.0
_STAGES: Final = max(ly.SeedLifecycleStage.values()) + 1
_LAYOUTS: Final = int(max(LAYOUT_CODES.values())) + 1
_CODE_WIDTH: Final = 8
#: Weights of the last layers: heads begin near to even, the critic at its own scale.
_HEAD_GAIN: Final = 0.01
_VALUE_GAIN: Final = 1.0
_HIDDEN_GAIN: Final = math.sqrt(2.0)


@dataclass(frozen=True)
class Judgement:
    """What a policy says of states: logits of each head, [N, A], and values, [N]."""

    logits: tuple[Tensor, ...]
    values: Tensor


@dataclass(frozen=True)
class Thoughts:
    """What a trunk makes of observations: of the whole, [N, D], and of each slot, [N, S, D] ([N, S])."""

    whole: Tensor
    slots: Tensor
    held: Tensor


class Normaliser(nn.Module):
    """Frozen means and spreads, which travel with the weights: a policy sees what it learned from, for ever."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.mean: Tensor
        self.scale: Tensor

    def freeze(self, figures_BF: Tensor) -> None:
        """Take means and spreads from figures, [any, F]; one that does not vary keeps its scale."""
        mean, spread = figures_BF.mean(dim=0), figures_BF.std(dim=0, correction=0)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    def forward(self, figures: Tensor) -> Tensor:
        """Return figures with mean 0 and spread 1 where they are as they were, bounded where they are not."""
        return ((figures - self.mean) / self.scale).clamp(-_FIGURE_MAX, _FIGURE_MAX)


class _History(nn.Module):
    """Attention of the present over the epochs before (Vaswani et al., 2017, arXiv 1706.03762; one head)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Linear(PAST_WIDTH, width)
        self.back = nn.Embedding(PAST_EPOCHS, width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)

    def forward(self, now_ND: Tensor, past_NTP: Tensor, known_NT: Tensor) -> Tensor:
        """Return the weighted mean of the known epochs, [N, D]; zero where none is known."""
        tokens = torch.tanh(self.token(past_NTP) + self.back.weight)
        scores = (self.key(tokens) @ self.query(now_ND).unsqueeze(-1)).squeeze(-1) / math.sqrt(tokens.shape[-1])
        # What is not known has no weight at all, whatever its figures are; with none known the weights stay finite.
        weights = torch.softmax(scores.masked_fill(~known_NT, -1e9), dim=-1) * known_NT
        return (weights.unsqueeze(-1) * tokens).sum(dim=1)


class _Trunk(nn.Module):
    """From encoded observations to thoughts."""

    def __init__(self, width: int, blueprints: int) -> None:
        super().__init__()
        self.now = nn.Linear(RUN_WIDTH, width)
        self.history = _History(width)
        self.stage = nn.Embedding(_STAGES, _CODE_WIDTH)
        self.layout = nn.Embedding(_LAYOUTS, _CODE_WIDTH)
        self.blueprint = nn.Embedding(blueprints + 1, _CODE_WIDTH)
        self.slot = nn.Linear(SLOT_WIDTH + 3 * _CODE_WIDTH, width)
        self.whole = nn.Linear(3 * width, width)
        self.each = nn.Linear(2 * width, width)

    def forward(self, run: Tensor, past: Tensor, known: Tensor, slots: Tensor, codes: Tensor, held: Tensor) -> Thoughts:
        now = torch.tanh(self.now(run))
        now = now + self.history(now, past, known)
        named = [self.stage(codes[..., 0]), self.layout(codes[..., 1]), self.blueprint(codes[..., 2])]
        each = torch.tanh(self.slot(torch.cat([slots, *named], dim=-1))) * held.unsqueeze(-1)
        mean = each.sum(dim=1) / held.sum(dim=1, keepdim=True).clamp(min=1)
        most = each.masked_fill(~held.unsqueeze(-1), -1.0).amax(dim=1) if each.shape[1] else torch.zeros_like(mean)
        whole = torch.tanh(self.whole(torch.cat([now, mean, most], dim=-1)))
        wide = whole.unsqueeze(1).expand(-1, each.shape[1], -1)
        return Thoughts(whole, torch.tanh(self.each(torch.cat([each, wide], dim=-1))), held)


class PolicyNetwork(nn.Module):
    """Actor and critic of a specification.

    The heads are asked one after the other, each given what was taken before it: an operation; a slot for it; for a
    germination the blueprint in that slot, for a graft its blend. `forward` judges logged decisions, `think` and the
    methods after it serve a live one. Place 0 of the later heads is "none", with logit 0.
    """

    def __init__(self, specification: Specification, *, generator: torch.Generator | None = None) -> None:
        """Build the network; weights are orthogonal, drawn from `generator`, or left as torch made them without one."""
        super().__init__()
        width = specification.width
        self.specification = specification
        self.normal_run, self.normal_past, self.normal_slot = (
            Normaliser(RUN_WIDTH),
            Normaliser(PAST_WIDTH),
            Normaliser(SLOT_WIDTH),
        )
        self.actor, self.critic = (_Trunk(width, len(specification.blueprints)) for _ in range(2))
        self.operation = nn.Linear(width, len(OPERATIONS))
        self.operation_by_slot = nn.Linear(width, len(OPERATIONS))
        self.where = nn.Linear(width, len(OPERATIONS))
        self.which = nn.Linear(width, len(specification.options))
        self.how = nn.Linear(width, len(BLENDS))
        self.value = nn.Linear(width, 1)
        rows = torch.zeros(max((0, *specification.blueprints)) + 1, dtype=torch.int64)
        for row, number in enumerate(specification.blueprints, start=1):
            rows[number] = row
        self.register_buffer("blueprint_rows", rows, persistent=False)  # It follows from the specification.
        self.blueprint_rows: Tensor
        if generator is not None:
            _initialise(self, generator)

    def encoded(self, found: Encoded) -> dict[str, Tensor]:
        """Return encoded observations as float32 tensors by name, not yet normalised."""
        return {
            "run": torch.from_numpy(found.run).float(),
            "past": torch.from_numpy(found.past).float(),
            "past_known": torch.from_numpy(found.past_known),
            "slots": torch.from_numpy(found.slots).float(),
            "codes": torch.from_numpy(found.codes),
            "held": torch.from_numpy(found.held),
        }

    def freeze_normaliser(self, observations: Mapping[str, Tensor]) -> None:
        """Take means and spreads from what there is to learn from; padding counts for nothing."""
        self.normal_run.freeze(observations["run"])
        if bool(observations["past_known"].any()):
            self.normal_past.freeze(observations["past"][observations["past_known"]])
        if bool(observations["held"].any()):
            self.normal_slot.freeze(observations["slots"][observations["held"]])

    def think(self, observations: Mapping[str, Tensor]) -> Thoughts:
        """Return what the actor makes of observations."""
        return self._through(self.actor, observations)

    def values(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Return what the critic expects from here on, [N], in units of scaled rewards."""
        found: Tensor = self.value(self._through(self.critic, observations).whole).squeeze(-1)
        return found

    def operations(self, thoughts: Thoughts) -> Tensor:
        """Return logits of operations, [N, A]: of the whole, and the most that any slot speaks for each."""
        spoken: Tensor = self.operation(thoughts.whole)
        if thoughts.slots.shape[1]:
            each = self.operation_by_slot(thoughts.slots).masked_fill(~thoughts.held.unsqueeze(-1), -torch.inf)
            most = each.amax(dim=1)
            spoken = spoken + most.masked_fill(most.isinf(), 0.0)
        return spoken

    def slots(self, thoughts: Thoughts, operation_N: Tensor) -> Tensor:
        """Return logits of "none" and each slot for an operation, [N, 1 + S]."""
        wishes = self.where(thoughts.slots)
        taken = operation_N.view(-1, 1, 1).expand(-1, wishes.shape[1], 1)
        return _after_none(wishes.gather(-1, taken).squeeze(-1))

    def options(self, thoughts: Thoughts, slot_N: Tensor) -> Tensor:
        """Return logits of "none" and each option in a slot, [N, 1 + options]; `slot_N` counts from 1, 0: none."""
        return _after_none(self.which(_of_slot(thoughts, slot_N)))

    def schedules(self, thoughts: Thoughts, slot_N: Tensor) -> Tensor:
        """Return logits of "none" and each blend of the seed in a slot, [N, 1 + blends]."""
        return _after_none(self.how(_of_slot(thoughts, slot_N)))

    def forward(self, observations: Mapping[str, Tensor]) -> Judgement:
        """Judge observations; `operation` and `slot` among them say what was taken, int64 [N]."""
        thoughts = self.think(observations)
        operation, slot = observations["operation"], observations["slot"]
        logits = (
            self.operations(thoughts),
            self.slots(thoughts, operation),
            self.options(thoughts, slot),
            self.schedules(thoughts, slot),
        )
        return Judgement(logits, self.values(observations))

    def _through(self, trunk: nn.Module, observations: Mapping[str, Tensor]) -> Thoughts:
        codes = observations["codes"]
        number = codes[..., 2]
        known = (number >= 0) & (number < len(self.blueprint_rows))
        row = torch.where(known, self.blueprint_rows[number.clamp(0, len(self.blueprint_rows) - 1)], 0)
        stage, layout = codes[..., 0].clamp(0, _STAGES - 1), codes[..., 1].clamp(0, _LAYOUTS - 1)
        found: Thoughts = trunk(
            self.normal_run(observations["run"]),
            self.normal_past(observations["past"]),
            observations["past_known"],
            self.normal_slot(observations["slots"]),
            torch.stack([stage, layout, row], dim=-1),
            observations["held"],
        )
        return found


def _after_none(logits_NA: Tensor) -> Tensor:
    return torch.cat([logits_NA.new_zeros(len(logits_NA), 1), logits_NA], dim=-1)


def _of_slot(thoughts: Thoughts, slot_N: Tensor) -> Tensor:
    """Return the thoughts of the slot taken, [N, D]; of the whole where there is none."""
    if not thoughts.slots.shape[1]:
        return thoughts.whole
    places = (slot_N - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, thoughts.slots.shape[-1])
    each = thoughts.slots.gather(1, places).squeeze(1)
    return torch.where((slot_N > 0).unsqueeze(-1), each, thoughts.whole)


def _initialise(network: PolicyNetwork, generator: torch.Generator) -> None:
    """Draw orthogonal weights with zero biases (Huang et al., 2022, "The 37 implementation details of PPO")."""
    heads = {network.operation, network.operation_by_slot, network.where, network.which, network.how}
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear):
                gain = _HEAD_GAIN if module in heads else _VALUE_GAIN if module is network.value else _HIDDEN_GAIN
                nn.init.orthogonal_(module.weight, gain, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.1, generator=generator)
