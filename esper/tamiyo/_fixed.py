"""The policy that follows a schedule and looks at nothing else: the control that shows what watching is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property

from esper.tamiyo._actions import (
    BLEND_EPOCHS,
    CULL,
    DEFAULT_OPTIONS,
    EVALUATE,
    FOSSILIZE,
    GERMINATE,
    STABILIZE,
    START_GRAFTING,
    Action,
    ActionSpace,
    BlueprintOption,
)
from esper.tamiyo._observation import Observation
from esper.tamiyo._policy import Proposal, canonical_digest, finite_number, unknown_parameter, whole_number

#: Far beyond any run; a bound on what a request may say.
_EPOCHS_MAX = 1_000_000
_SLOTS_MAX = 10_000
#: Karn's catalogue is BP001 to BP050; a number outside would be refused at the epoch's edge anyway.
_BLUEPRINT_MAX = 50
_PARAMETER_PREFIX = "parameter."


@dataclass(frozen=True)
class FixedSchedule:
    """Epochs at whose edge each move is made; a move that is not yet legal is made at the first edge where it is.

    An edge is named by the epoch that it ends. 0 stands for the default in the field's comment.
    """

    germinate: int = 0  # a tenth of the epochs: late enough to have a host, early enough to grow up
    graft: int = 0  # a tenth of the epochs after `germinate`: TRAINING is an incubator, not the place to learn
    stabilize: int = 0  # as soon as alpha is 1
    evaluate: int = 0  # as soon as legal
    fossilize: int = 0  # as soon as legal
    cull: int = 0  # never
    blend: int = 0  # epochs that alpha takes from 0 to 1; as many as the graft controller takes by itself
    slot: int = 0  # index of the slot, in order of names

    def epoch_of(self, operation: str, epochs_planned: int) -> int:
        """Return the first epoch at whose edge `operation` is due."""
        tenth = max(1, epochs_planned // 10)
        germinate = self.germinate or tenth
        due = {
            GERMINATE: germinate,
            START_GRAFTING: self.graft or germinate + tenth,
            STABILIZE: self.stabilize,
            EVALUATE: self.evaluate,
            FOSSILIZE: self.fossilize,
            CULL: self.cull or _EPOCHS_MAX + 1,
        }
        return due[operation]


class FixedPolicy:
    """Do what the schedule says, once, with one seed in one slot."""

    name = "fixed"
    version = "fixed-1"

    def __init__(self, schedule: FixedSchedule, option: BlueprintOption = DEFAULT_OPTIONS[0]) -> None:
        self.schedule = schedule
        self.options = (option,)

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, float]) -> FixedPolicy:
        """Return the policy for a request's parameters.

        They are the fields of FixedSchedule, `blueprint` (9 for BP009) and `parameter.NAME` for each of the
        blueprint's own parameters.

        Raises:
            BadPolicyParameters: a name is unknown or a value is not a whole number in range.
        """
        known = tuple(field.name for field in fields(FixedSchedule))
        schedule: dict[str, int] = {}
        for name, value in parameters.items():
            if name in known:
                high = _SLOTS_MAX if name == "slot" else _EPOCHS_MAX
                schedule[name] = whole_number(cls.name, name, value, low=0, high=high)
            elif name != "blueprint" and not name.startswith(_PARAMETER_PREFIX):
                raise unknown_parameter(cls.name, name, (*known, "blueprint", f"{_PARAMETER_PREFIX}NAME"))
        return cls(FixedSchedule(**schedule), _option(parameters))

    @cached_property
    def digest(self) -> str:
        option = self.options[0]
        configuration = {"blueprint": option.blueprint_id, "parameters": dict(option.parameters)}
        return canonical_digest(self.name, self.version, {**configuration, "schedule": asdict(self.schedule)})

    def propose(self, observation: Observation, space: ActionSpace) -> Proposal:
        """Return the move that is due and legal, else "continue"."""
        epoch, planned = int(observation["epoch"]), int(observation["epochs_planned"])
        if self.schedule.slot >= len(space.slots):
            return self._answer(space, Action(), f"the run has no slot number {self.schedule.slot}")
        slot = space.slots[self.schedule.slot]
        for operation in (CULL, FOSSILIZE, EVALUATE, STABILIZE, START_GRAFTING, GERMINATE):
            due = self.schedule.epoch_of(operation, planned)
            if epoch < due or slot not in space.targets[operation]:
                continue
            if operation == GERMINATE and observation["seeds_seen"]:
                continue
            action = self._action(operation, slot)
            return self._answer(space, action, f"{operation} is due from epoch {due} on")
        return self._answer(space, Action(), "nothing is both due and legal")

    def candidates(self, observation: Observation, space: ActionSpace) -> list[Action]:
        """Return the one germination of the schedule, until it was made."""
        if observation["seeds_seen"] or self.schedule.slot >= len(space.slots):
            return []
        slot = space.slots[self.schedule.slot]
        return [self._action(GERMINATE, slot)] if slot in space.targets[GERMINATE] else []

    def _action(self, operation: str, slot: str) -> Action:
        if operation == GERMINATE:
            return Action(operation, slot, self.options[0])
        blends = operation == START_GRAFTING and self.schedule.blend
        return Action(operation, slot, parameters=((BLEND_EPOCHS, float(self.schedule.blend)),) if blends else ())

    @staticmethod
    def _answer(space: ActionSpace, action: Action, reason: str) -> Proposal:
        return Proposal(action, space.certain_heads(action), (reason,))


def _option(parameters: Mapping[str, float]) -> BlueprintOption:
    """Return the blueprint that the parameters name, with the defaults for what they leave out."""
    given = {
        name.removeprefix(_PARAMETER_PREFIX): finite_number(FixedPolicy.name, name, value)
        for name, value in parameters.items()
        if name.startswith(_PARAMETER_PREFIX)
    }
    number = parameters.get("blueprint")
    if number is None:
        wanted = DEFAULT_OPTIONS[0].blueprint_id
    else:
        wanted = f"BP{whole_number(FixedPolicy.name, 'blueprint', number, low=1, high=_BLUEPRINT_MAX):03d}"
    default = next((option for option in DEFAULT_OPTIONS if option.blueprint_id == wanted), BlueprintOption(wanted))
    return BlueprintOption(wanted, tuple(sorted({**dict(default.parameters), **given}.items())))
