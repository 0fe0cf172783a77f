"""The policy that draws what it does: the control that shows what choosing is worth, and what learning begins from.

Every legal action has a share, so that its logs support the judgement of any other policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from random import Random

from esper.core.policy import BLENDS, NONE, OPERATIONS
from esper.core.rng import stream_of
from esper.tamiyo._actions import (
    BLEND_EPOCHS,
    DEFAULT_OPTIONS,
    GERMINATE,
    START_GRAFTING,
    Action,
    ActionSpace,
    BlueprintOption,
    drawn,
)
from esper.tamiyo._observation import Observation
from esper.tamiyo._policy import BadPolicyParameters, Proposal, canonical_digest, unknown_parameter


class RandomPolicy:
    """Go on with probability 1 - `act`; else draw a legal operation, its slot, its blueprint and its blend evenly."""

    name = "random"
    version = "random-1"
    options: tuple[BlueprintOption, ...] = DEFAULT_OPTIONS

    def __init__(self, *, act: float = 0.25) -> None:
        self._act = act

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, float]) -> RandomPolicy:
        """Return the policy for a request's parameters, of which there is one, `act`.

        Raises:
            BadPolicyParameters: another one is named, or `act` is no probability above 0.
        """
        for name in parameters:
            if name != "act":
                raise unknown_parameter(cls.name, name, ("act",))
        act = parameters.get("act", 0.25)
        if not 0.0 < act <= 1.0:
            raise BadPolicyParameters(
                f"policy {cls.name!r} cannot use act={act:g}",
                cause="act is the probability to act where something can be done, above 0 and at most 1",
                next_step="correct the parameter or leave it out",
            )
        return cls(act=act)

    @cached_property
    def digest(self) -> str:
        options = [option.label for option in self.options]
        configuration = {"act": self._act, "options": options, "schedules": dict(BLENDS)}
        return canonical_digest(self.name, self.version, configuration)

    def propose(self, observation: Observation, space: ActionSpace) -> Proposal:
        """Return what the stream of seed 0 draws; see `draw`."""
        return self.draw(observation, space, stream_of(0))

    def draw(self, observation: Observation, space: ActionSpace, stream: Random) -> Proposal:
        """Return a drawn action with the probabilities that it was drawn with; one number a head is taken."""
        del observation
        legal = [place for place, operation in enumerate(OPERATIONS) if place and space.targets[operation]]
        acts = dict.fromkeys(legal, self._act / max(1, len(legal)))
        what = drawn("operation", OPERATIONS, {0: 1.0 - self._act if legal else 1.0} | acts, stream)
        operation = OPERATIONS[what.chosen]
        targets = space.targets.get(operation, frozenset())
        where = drawn("slot", (NONE, *space.slots), _even(slot in targets for slot in space.slots), stream)
        slot = space.slots[where.chosen - 1] if where.chosen else NONE
        fitting = space.fitting[slot] if operation == GERMINATE else ()
        labels = (NONE, *(option.label for option in space.options))
        which = drawn("blueprint", labels, _even(option in fitting for option in space.options), stream)
        how = drawn("schedule", (NONE, *BLENDS), _even([operation == START_GRAFTING] * len(BLENDS)), stream)
        action = Action(
            operation,
            slot,
            space.options[which.chosen - 1] if which.chosen else None,
            ((BLEND_EPOCHS, [*BLENDS.values()][how.chosen - 1]),) if how.chosen else (),
        )
        share = what.probabilities[what.chosen]
        return Proposal(action, (what, where, which, how), (f"drawn: {operation} with probability {share:.3g}",))


def _even(allowed: Iterable[bool]) -> dict[int, float]:
    """Return equal shares for what is allowed, by its place after NONE; all of it for NONE where nothing is."""
    places = [place for place, each in enumerate(allowed, start=1) if each] or [0]
    return dict.fromkeys(places, 1.0 / len(places))
