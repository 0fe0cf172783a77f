"""What may be done at an epoch's edge: operations, slots, blueprints, and which of them are legal now.

All policies share this space and its masks, so that their decisions can be compared and learned from. Legal
means "the lifecycle allows the move"; whether a gate then lets it pass is measured by Kasmina, not guessed here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from esper.core.policy import LAYOUT_CODES, NONE, OPERATIONS
from esper.leyline import messages as ly
from esper.tamiyo._facts import LIVE_STAGES
from esper.tamiyo._observation import Observation, SlotView

CONTINUE, GERMINATE, START_GRAFTING, STABILIZE, EVALUATE, FOSSILIZE, CULL = OPERATIONS
SEED_OPERATIONS: Mapping[str, ly.SeedOperation] = {
    GERMINATE: ly.SEED_OP_GERMINATE,
    START_GRAFTING: ly.SEED_OP_START_GRAFTING,
    STABILIZE: ly.SEED_OP_STABILIZE,
    EVALUATE: ly.SEED_OP_EVALUATE,
    FOSSILIZE: ly.SEED_OP_FOSSILIZE,
    CULL: ly.SEED_OP_CULL,
}
#: Parameter of START_GRAFTING: epochs that alpha takes from 0 to 1.
BLEND_EPOCHS = "blend_epochs"
_STAGE_BEFORE: Mapping[str, int] = {
    START_GRAFTING: ly.SEED_STAGE_TRAINING,
    STABILIZE: ly.SEED_STAGE_BLENDING,
    EVALUATE: ly.SEED_STAGE_SHADOWING,
    FOSSILIZE: ly.SEED_STAGE_PROBATIONARY,
}


@dataclass(frozen=True)
class BlueprintOption:
    """A blueprint with its parameters, as one action; empty `layouts` fit any slot."""

    blueprint_id: str
    parameters: tuple[tuple[str, float], ...] = ()
    layouts: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Name of the action: `BP009(depth=2)`."""
        inside = ",".join(f"{name}={value:g}" for name, value in self.parameters)
        return f"{self.blueprint_id}({inside})"

    def fits(self, slot: SlotView) -> bool:
        """Return whether the option can be built for the slot's layout."""
        return not self.layouts or slot["layout"] in {LAYOUT_CODES[layout] for layout in self.layouts}


@dataclass(frozen=True)
class Action:
    """What to do: an operation, and the slot and option that it needs."""

    operation: str = CONTINUE
    slot: str = NONE
    option: BlueprintOption | None = None
    #: What the order says besides; follows from the configuration and the run's length, so no head covers it.
    parameters: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Head:
    """One factored head of a decision: behaviour probabilities over actions, and the one taken."""

    name: str
    actions: tuple[str, ...]
    mask: tuple[bool, ...]
    probabilities: tuple[float, ...]
    chosen: int

    @property
    def log_probability(self) -> float:
        """Natural logarithm of the probability with which `chosen` was taken."""
        return math.log(self.probabilities[self.chosen])


def drawn(name: str, actions: tuple[str, ...], shares: Mapping[int, float], stream: Random) -> Head:
    """Return a head that took one of `actions` by the shares of their places; those without one are not allowed."""
    bounds = list(accumulate(shares.values()))
    at = stream.random() * bounds[-1]
    taken = next((place for place, bound in zip(shares, bounds, strict=True) if at < bound), 0)
    return Head(
        name,
        actions,
        tuple(place in shares for place in range(len(actions))),
        tuple(shares.get(place, 0.0) for place in range(len(actions))),
        taken,
    )


@dataclass(frozen=True)
class ActionSpace:
    """The legal actions at one observation."""

    slots: tuple[str, ...]
    options: tuple[BlueprintOption, ...]
    targets: Mapping[str, frozenset[str]]
    fitting: Mapping[str, tuple[BlueprintOption, ...]]

    def allows(self, action: Action) -> bool:
        """Return whether every head's mask lets `action` pass."""
        if action.operation == CONTINUE:
            return action.slot == NONE and action.option is None
        if action.slot not in self.targets.get(action.operation, frozenset()):
            return False
        return action.option in self.fitting[action.slot] if action.operation == GERMINATE else action.option is None

    def operation_mask(self) -> tuple[bool, ...]:
        """Return which of OPERATIONS are legal somewhere."""
        return tuple(operation == CONTINUE or bool(self.targets[operation]) for operation in OPERATIONS)

    def slot_mask(self, operation: str) -> tuple[bool, ...]:
        """Return whether `operation` goes without a slot, and in which of the slots it is legal."""
        targets = self.targets.get(operation, frozenset())
        return (operation == CONTINUE, *(slot in targets for slot in self.slots))

    def option_mask(self, operation: str, slot: str) -> tuple[bool, ...]:
        """Return whether `operation` goes without a blueprint, and which of the options it may germinate in `slot`."""
        germinates = operation == GERMINATE
        fitting = self.fitting.get(slot, ()) if germinates else ()
        return (not germinates, *(option in fitting for option in self.options))

    def certain_heads(self, action: Action) -> tuple[Head, ...]:
        """Return the heads of a deterministic policy that took `action`: probability 1 on what was chosen."""
        assert self.allows(action), f"a policy chose the illegal {action}"
        labels = (NONE, *(option.label for option in self.options))
        option = NONE if action.option is None else action.option.label
        return (
            _certain("operation", OPERATIONS, self.operation_mask(), action.operation),
            _certain("slot", (NONE, *self.slots), self.slot_mask(action.operation), action.slot),
            _certain("blueprint", labels, self.option_mask(action.operation, action.slot), option),
        )


def _certain(name: str, actions: tuple[str, ...], mask: tuple[bool, ...], taken: str) -> Head:
    """Return a head that took `taken`; of several actions of one name the allowed one is meant."""
    chosen = next(index for index, action in enumerate(actions) if action == taken and mask[index])
    return Head(name, actions, mask, tuple(float(index == chosen) for index in range(len(actions))), chosen)


def action_space(
    observation: Observation,
    options: Sequence[BlueprintOption],
    *,
    refused: Collection[str] = (),
    barred: Collection[str] = (),
) -> ActionSpace:
    """Return what is legal at `observation` for a policy that may germinate `options`.

    `refused` are the ids of blueprints that may not be grafted: they stay among the options, and every mask bars them.
    Operations that are `barred` are legal in no slot.
    """
    allowed = [option for option in options if option.blueprint_id not in refused]
    fitting = {slot.slot: tuple(option for option in allowed if option.fits(slot)) for slot in observation.slots}
    targets = {
        operation: frozenset(slot.slot for slot in observation.slots if _legal(operation, slot, fitting))
        if operation not in barred
        else frozenset()
        for operation in OPERATIONS[1:]
    }
    slots = tuple(slot.slot for slot in observation.slots)
    return ActionSpace(slots=slots, options=tuple(options), targets=targets, fitting=fitting)


def barred_while(*, held: bool, breaker_open: bool) -> frozenset[str]:
    """Return the operations that Kasmina would refuse wherever they are ordered, as the packet says it."""
    if held:
        return frozenset(OPERATIONS) - {CONTINUE, CULL}
    return frozenset({GERMINATE}) if breaker_open else frozenset()


def _legal(operation: str, slot: SlotView, fitting: Mapping[str, tuple[BlueprintOption, ...]]) -> bool:
    if operation == GERMINATE:
        return bool(slot["free"]) and bool(fitting[slot.slot])
    if operation == CULL:
        return slot.stage in LIVE_STAGES
    if operation == STABILIZE and (slot.known("alpha") or 0.0) < 1.0:
        return False
    return slot.stage == _STAGE_BEFORE[operation]


#: What may be grafted where nothing else is asked for, in order of preference. As a bypass both give a small host
#: capacity that its own layers lack, which is what pays on all tasks measured (reference of the design, 1.2);
#: BP021 at multiple 2 costs the least parameters of its range, BP009 is the cheaper second try.
DEFAULT_OPTIONS = (
    BlueprintOption("BP021", (("hidden_multiple", 2.0),), ("vector",)),
    BlueprintOption("BP009", (("depth", 1.0),), ("vector",)),
    BlueprintOption("BP009", (("depth", 2.0),), ("vector",)),
)
