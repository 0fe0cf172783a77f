"""From a command to an order that can be carried out, or to the reason why not; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from esper.kasmina._lifecycle import PATHS, KasminaLifecycle, illegal_step, stage_name
from esper.leyline import messages as ly

#: What START_GRAFTING may say about the rise of alpha. The other operations on a seed take no parameters.
BLEND_STEPS: Final = "blend_steps"
BLEND_EPOCHS: Final = "blend_epochs"
#: Most steps or epochs that a blend may be asked to take; no run is that long.
_BLEND_MAX: Final = 1e9
_GRAFTING_PARAMETERS: Final = frozenset({BLEND_STEPS, BLEND_EPOCHS})


@dataclass(frozen=True)
class Order:
    """One move of one seed, as a command asks for it: from its stage along `path`."""

    operation: ly.SeedOperation
    seed_id: str
    slot: str
    blueprint_id: str
    from_stage: ly.SeedLifecycleStage
    path: tuple[ly.SeedLifecycleStage, ...]
    command_id: str = ""
    parameters: Mapping[str, float] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """Why the seed moves, as its events say it: "command:germinate"."""
        return "command:" + ly.SeedOperation.Name(self.operation).removeprefix("SEED_OP_").lower()


@dataclass(frozen=True)
class Refusal:
    """Why a command cannot be carried out; `order` is None where it does not come to a move at all."""

    reason: str
    order: Order | None = None


def read_command(command: ly.AdaptationCommand, lifecycle: KasminaLifecycle) -> Order | Refusal:
    """Return what `command` asks for, or why the lifecycle refuses it."""
    if command.command_type != ly.COMMAND_SEED:
        return Refusal("unsupported_command")
    if not command.HasField("seed_operation"):
        return Refusal("malformed_command:no_seed_operation")
    operation = command.seed_operation.operation
    if operation not in PATHS:
        return Refusal("unsupported_seed_operation")
    order = _germination(command, lifecycle) if operation == ly.SEED_OP_GERMINATE else _move(command, lifecycle)
    reason = _problem(order)
    return Refusal(reason, order) if reason else order


def _germination(command: ly.AdaptationCommand, lifecycle: KasminaLifecycle) -> Order:
    wish = command.seed_operation
    return Order(
        operation=wish.operation,
        seed_id=lifecycle.next_seed_id(wish.slot),
        slot=wish.slot,
        blueprint_id=wish.blueprint_id,
        from_stage=ly.SEED_STAGE_DORMANT,
        path=PATHS[wish.operation],
        command_id=command.command_id,
        parameters=dict(wish.parameters),
    )


def _move(command: ly.AdaptationCommand, lifecycle: KasminaLifecycle) -> Order:
    wish = command.seed_operation
    record = lifecycle.seeds.get(command.target_seed_id)
    return Order(
        operation=wish.operation,
        seed_id=command.target_seed_id,
        slot=record.slot if record else "",
        blueprint_id=record.blueprint_id if record else "",
        from_stage=lifecycle.stage_of(command.target_seed_id),
        path=PATHS[wish.operation],
        command_id=command.command_id,
        parameters=dict(wish.parameters),
    )


def _problem(order: Order) -> str:
    if order.from_stage == ly.SEED_STAGE_UNKNOWN:
        return "unknown_seed"
    step = illegal_step(order.from_stage, order.path)
    if step is not None:
        return f"illegal_transition:{stage_name(step[0])}->{stage_name(step[1])}"
    if order.operation == ly.SEED_OP_GERMINATE:
        return ""
    return _parameter_problem(order)


def _parameter_problem(order: Order) -> str:
    known = _GRAFTING_PARAMETERS if order.operation == ly.SEED_OP_START_GRAFTING else frozenset()
    unknown = sorted(set(order.parameters) - known)
    if unknown:
        return f"unknown_parameter:{unknown[0]}"
    for name, value in sorted(order.parameters.items()):
        if not 0 < value <= _BLEND_MAX:  # NaN fails as well
            return f"parameter_out_of_bounds:{name}"
    return ""
