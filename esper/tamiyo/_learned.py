"""The policy that was learned: a network's weights, as a PolicyUpdate carries them, and how to draw from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, Final

from esper.core.policy import BLENDS, NONE, OPERATIONS, OptionEntry
from esper.core.rng import stream_of
from esper.tamiyo._actions import (
    BLEND_EPOCHS,
    GERMINATE,
    START_GRAFTING,
    Action,
    ActionSpace,
    BlueprintOption,
    Head,
    drawn,
)
from esper.tamiyo._observation import Observation
from esper.tamiyo._policy import BadPolicyParameters, Proposal, canonical_digest, unknown_parameter
from esper.tamiyo.risk import without_limits

if TYPE_CHECKING:
    from torch import Tensor

    from esper.core.policy import PolicyNetwork
    from esper.leyline import messages as ly

LEARNED: Final = "learned"
_PINNED: Final = f"{LEARNED}@"


def is_learned(name: str) -> bool:
    """Whether a request of this policy is decided by a learned version: the current one, or the one that it names."""
    return name == LEARNED or name.startswith(_PINNED)


def pinned_version(name: str) -> str:
    """Return the version that `learned@VERSION` names; nothing for `learned`."""
    return name.removeprefix(_PINNED) if name.startswith(_PINNED) else ""


@dataclass(frozen=True)
class Drawing:
    """How actions are drawn from what the network gives."""

    #: Share of each head that is spread evenly over its legal actions: what makes a log worth judging others by.
    explore: float = 0.0
    #: Logits are divided by it; 0 takes the likeliest action always.
    temperature: float = 1.0

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, float]) -> Drawing:
        """Return what a request's parameters say.

        Raises:
            BadPolicyParameters: another one is named, or a value lies outside 0..1 (explore) or 0..100 (temperature).
        """
        for name, value in parameters.items():
            highest = {"explore": 1.0, "temperature": 100.0}.get(name)
            if highest is None:
                raise unknown_parameter(LEARNED, name, ("explore", "temperature"))
            if not 0.0 <= value <= highest:
                raise BadPolicyParameters(
                    f"policy {LEARNED!r} cannot use {name}={value:g}",
                    cause=f"{name} is a number from 0 to {highest:g}",
                    next_step="correct the parameter or leave it out",
                )
        return cls(**parameters)


class LearnedPolicy:
    """Draw an operation, then its slot, then its blueprint or its blend, each from the network's masked distribution.

    Its `version` and its `digest` are those of the PolicyUpdate; how it draws is part of the digest where it is not
    the way in which it was judged.
    """

    def __init__(
        self,
        network: PolicyNetwork,
        *,
        version: str,
        digest: str,
        drawing: Drawing = Drawing(),
        name: str = LEARNED,
        appointed_by: str = "",
    ) -> None:
        #: As the request has it: LEARNED, or with the version that it asks for.
        self.name = name
        #: event_id of the promotion or rollback by which it decides; empty where none had to.
        self.appointed_by = appointed_by
        self._network = network
        self._drawing = drawing
        self.version = version
        self._digest = digest
        self.options = tuple(option_of(entry) for entry in network.specification.options)

    @classmethod
    def of(cls, update: ly.PolicyUpdate, parameters: Mapping[str, float] | None = None) -> LearnedPolicy:
        """Return the policy that an update carries.

        Raises:
            PolicyRefused: it is not what it says it is, or cannot be decided with.
            BadPolicyParameters: as `Drawing`.
        """
        from esper.core.policy import unpack  # torch comes with it

        return cls(
            unpack(update),
            version=update.tamiyo_policy_version,
            digest=update.policy_digest,
            drawing=Drawing.from_parameters(parameters or {}),
        )

    @cached_property
    def digest(self) -> str:
        return _drawn_digest(self.version, self._digest, self._drawing)

    def propose(self, observation: Observation, space: ActionSpace) -> Proposal:
        """Return what the stream of seed 0 draws; see `draw`."""
        return self.draw(observation, space, stream_of(0))

    def draw(self, observation: Observation, space: ActionSpace, stream: Random) -> Proposal:
        """Return a drawn action with the probabilities that it was drawn with; one number a head is taken."""
        import numpy as np
        import torch

        from esper.core.policy import layout_of

        values = np.asarray([observation.values], dtype=np.float64)
        network = self._network
        with torch.inference_mode():
            seen = network.encoded(layout_of(observation.names).encode(values))
            thoughts = network.think(seen)
            what = self._head("operation", OPERATIONS, space.operation_mask(), network.operations(thoughts), stream)
            operation = OPERATIONS[what.chosen]
            taken = torch.tensor([what.chosen])
            names = (NONE, *space.slots)
            where = self._head("slot", names, space.slot_mask(operation), network.slots(thoughts, taken), stream)
            slot, place = names[where.chosen], torch.tensor([where.chosen])
            labels = (NONE, *(option.label for option in space.options))
            allowed = space.option_mask(operation, slot)
            which = self._head("blueprint", labels, allowed, network.options(thoughts, place), stream)
            blends = operation == START_GRAFTING
            mask = (not blends, *(blends for _ in BLENDS))
            how = self._head("schedule", (NONE, *BLENDS), mask, network.schedules(thoughts, place), stream)
            value = float(network.values(seen)) / network.specification.value_scale
        action = Action(
            operation,
            slot,
            space.options[which.chosen - 1] if operation == GERMINATE else None,
            ((BLEND_EPOCHS, [*BLENDS.values()][how.chosen - 1]),) if blends else (),
        )
        share = what.probabilities[what.chosen]
        reason = f"drawn: {operation} with probability {share:.3g}, expecting {value:+.3g}"
        return Proposal(action, (what, where, which, how), (reason,), value=value)

    def _head(
        self, name: str, actions: tuple[str, ...], mask: tuple[bool, ...], logits_1A: Tensor, stream: Random
    ) -> Head:
        """Draw from the legal part of a head."""
        import torch

        allowed = torch.tensor(mask)
        logits = logits_1A[0].double()[: len(mask)].masked_fill(~allowed, -torch.inf)
        if self._drawing.temperature:
            shares = torch.softmax(logits / self._drawing.temperature, dim=-1)
        else:
            shares = torch.zeros_like(logits).index_fill(0, logits.argmax(), 1.0)
        even = allowed.double() / allowed.sum()
        mixed = (1.0 - self._drawing.explore) * shares + self._drawing.explore * even
        legal = {place: float(share) for place, share in enumerate(mixed / mixed.sum()) if mask[place]}
        return drawn(name, actions, legal, stream)


def drawn_digest(update: ly.PolicyUpdate, parameters: Mapping[str, float]) -> str:
    """Return the digest by which decisions of an update's policy name it under a request's parameters.

    Raises:
        BadPolicyParameters: as `Drawing`; limits of the risk gate are no part of the policy and are passed over.
    """
    drawing = Drawing.from_parameters(without_limits(parameters))
    return _drawn_digest(update.tamiyo_policy_version, update.policy_digest, drawing)


def _drawn_digest(version: str, digest: str, drawing: Drawing) -> str:
    if drawing == Drawing():
        return digest
    return canonical_digest(LEARNED, version, {"policy": digest, **asdict(drawing)})


def option_of(entry: OptionEntry) -> BlueprintOption:
    """Return the option that a policy's registry names."""
    return BlueprintOption(entry.blueprint_id, entry.parameters, entry.layouts)
