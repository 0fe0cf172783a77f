"""From a command to an order that can be carried out, or to the reason why not; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from esper.kasmina.grafting._blend import BLEND_MODES
from esper.kasmina.lifecycle._lifecycle import (
    FALL_STEPS,
    FALLING_STAGES,
    GROWING_STAGES,
    PATHS,
    KasminaLifecycle,
    illegal_step,
    stage_name,
)
from esper.leyline import messages as ly

#: What START_GRAFTING may say about the rise of alpha, and CULL and CANCEL about its fall (0: at once).
BLEND_STEPS: Final = "blend_steps"
BLEND_EPOCHS: Final = "blend_epochs"
FALL_EPOCHS: Final = "fall_epochs"
#: What FINE_TUNE multiplies the seed's own learning rate by, and for how many epochs.
RATE_FACTOR: Final = "rate_factor"
TUNE_EPOCHS: Final = "epochs"
#: Whether FOSSILIZE may fold the seed, 0 or 1.
FOLD: Final = "fold"

#: Most steps and epochs that alpha may be asked to take: while it moves, the seed keeps its slot.
_STEPS_MOST: Final = 100_000_000.0
_EPOCHS_MOST: Final = 1_000_000.0
#: What may stand in a record of a time when both had one bound.
_RECORDED_MOST: Final = 1e9
_ABOVE_ZERO: Final = math.ulp(0.0)
_FALL: Final = {FALL_STEPS: (0.0, _STEPS_MOST), FALL_EPOCHS: (0.0, _EPOCHS_MOST)}
_OF_ALPHA: Final = frozenset({BLEND_STEPS, BLEND_EPOCHS, FALL_STEPS, FALL_EPOCHS})
_OUT_OF_BOUNDS: Final = "parameter_out_of_bounds:"
_ILLEGAL: Final = "illegal_transition:"
#: Parameters of each operation with their bounds, inclusive; GERMINATE's are its blueprint's.
_PARAMETERS: Final[Mapping[ly.SeedOperation, Mapping[str, tuple[float, float]]]] = {
    ly.SEED_OP_START_GRAFTING: {
        BLEND_STEPS: (_ABOVE_ZERO, _STEPS_MOST),
        BLEND_EPOCHS: (_ABOVE_ZERO, _EPOCHS_MOST),
    },
    ly.SEED_OP_FINE_TUNE: {RATE_FACTOR: (0.01, 10.0), TUNE_EPOCHS: (1.0, 1000.0)},
    ly.SEED_OP_FOSSILIZE: {FOLD: (0.0, 1.0)},
    ly.SEED_OP_CULL: _FALL,
    ly.SEED_OP_CANCEL: _FALL,
}
#: Stages of which a CANCEL takes the seed off: a move or a training is under way that has proved nothing yet.
_UNPROVEN: Final = frozenset({ly.SEED_STAGE_GERMINATED, ly.SEED_STAGE_TRAINING, ly.SEED_STAGE_BLENDING})
_TUNABLE: Final = GROWING_STAGES - {ly.SEED_STAGE_GERMINATED}


@dataclass(frozen=True)
class Order:
    """One move of one seed, as a command asks for it: from its stage along `path`; without a path it stays there."""

    operation: ly.SeedOperation
    seed_id: str
    slot: str
    blueprint_id: str
    from_stage: ly.SeedLifecycleStage
    path: tuple[ly.SeedLifecycleStage, ...]
    command_id: str = ""
    parameters: Mapping[str, float] = field(default_factory=dict)
    blend_mode: ly.BlendMode = ly.BLEND_MODE_UNSPECIFIED
    alpha_curve: ly.AlphaCurve = ly.ALPHA_CURVE_UNSPECIFIED
    #: What the events give as the reason, where it is not the operation's name.
    word: str = ""

    @property
    def reason(self) -> str:
        """Why the seed moves, as its events say it: "command:germinate"."""
        return "command:" + (self.word or ly.SeedOperation.Name(self.operation).removeprefix("SEED_OP_").lower())

    @property
    def to_stage(self) -> ly.SeedLifecycleStage:
        """The stage that is asked for first."""
        return self.path[0] if self.path else self.from_stage


@dataclass(frozen=True)
class Refusal:
    """Why a command cannot be carried out; `order` is None where it does not come to a move at all."""

    reason: str
    order: Order | None = None


def read_command(
    command: ly.AdaptationCommand,
    lifecycle: KasminaLifecycle,
    *,
    epoch: int,
    recorded: ly.CommandOutcome | None = None,
) -> Order | Refusal:
    """Return what a seed command asks for at the edge after `epoch`, or why the lifecycle refuses it.

    With the `recorded` outcome of a re-execution what was let through, or refused, by older rules is so again.
    """
    if not command.HasField("seed_operation"):
        return Refusal("malformed_command:no_seed_operation")
    operation = command.seed_operation.operation
    if operation not in PATHS:
        return Refusal("unsupported_seed_operation")
    if operation == ly.SEED_OP_GERMINATE:
        order = _germination(command, lifecycle)
    else:
        order = _move(command, lifecycle, epoch, recorded)
    reason = _problem(order, recorded) or _wish_problem(command.seed_operation)
    return Refusal(reason, order) if reason else order


def read_pruning(command: ly.AdaptationCommand, lifecycle: KasminaLifecycle) -> Order | Refusal:
    """Return the order to take a fossilised seed off the host again, or why the lifecycle refuses it."""
    record = lifecycle.seeds.get(command.target_seed_id)
    order = Order(
        operation=ly.SEED_OP_UNKNOWN,
        seed_id=command.target_seed_id,
        slot=record.slot if record else "",
        blueprint_id=record.blueprint_id if record else "",
        from_stage=lifecycle.stage_of(command.target_seed_id),
        path=(ly.SEED_STAGE_TERMINATED,),
        command_id=command.command_id,
        word="structural_pruning",
    )
    wanted = command.structural_pruning
    reason = _problem(order)
    # DORMANT leads to TERMINATED as well, but there is nothing of such a seed to prune.
    if not reason and order.from_stage != ly.SEED_STAGE_FOSSILIZED:
        reason = f"illegal_stage:{stage_name(order.from_stage)}"
    if not reason and record is not None and record.folded:
        reason = "folded"
    if not reason and wanted.HasField("loss_rise_max") and not 0.0 <= wanted.loss_rise_max <= 1.0:
        reason = "parameter_out_of_bounds:loss_rise_max"
    return Refusal(reason, order) if reason else order


def _germination(command: ly.AdaptationCommand, lifecycle: KasminaLifecycle) -> Order:
    wish = command.seed_operation
    path = PATHS[wish.operation]
    return Order(
        operation=wish.operation,
        seed_id=lifecycle.next_seed_id(wish.slot),
        slot=wish.slot,
        blueprint_id=wish.blueprint_id,
        from_stage=ly.SEED_STAGE_DORMANT,
        path=path[:1] if wish.hold else path,
        command_id=command.command_id,
        parameters=dict(wish.parameters),
    )


def _move(
    command: ly.AdaptationCommand, lifecycle: KasminaLifecycle, epoch: int, recorded: ly.CommandOutcome | None
) -> Order:
    wish = command.seed_operation
    record = lifecycle.seeds.get(command.target_seed_id)
    path = PATHS[wish.operation]
    if wish.operation == ly.SEED_OP_CANCEL and record is not None and record.tuned_until > epoch:
        path = ()
    elif wish.operation == ly.SEED_OP_CULL and record is not None and record.stage in FALLING_STAGES:
        # Once refused: nothing could shorten a fall.
        path = path if recorded is not None and recorded.reason.startswith(_ILLEGAL) else path[1:]
    return Order(
        operation=wish.operation,
        seed_id=command.target_seed_id,
        slot=record.slot if record else "",
        blueprint_id=record.blueprint_id if record else "",
        from_stage=lifecycle.stage_of(command.target_seed_id),
        path=path,
        command_id=command.command_id,
        parameters=dict(wish.parameters),
        blend_mode=wish.blend_mode,
        alpha_curve=wish.alpha_curve,
    )


def _problem(order: Order, recorded: ly.CommandOutcome | None = None) -> str:
    if order.from_stage == ly.SEED_STAGE_UNKNOWN:
        return "unknown_seed"
    step = illegal_step(order.from_stage, order.path)
    if step is not None:
        return f"{_ILLEGAL}{stage_name(step[0])}->{stage_name(step[1])}"
    if order.operation == ly.SEED_OP_FINE_TUNE and order.from_stage not in _TUNABLE:
        return f"illegal_stage:{stage_name(order.from_stage)}"
    if order.operation == ly.SEED_OP_CANCEL and order.path and order.from_stage not in _UNPROVEN:
        return "nothing_to_cancel"
    return "" if order.operation == ly.SEED_OP_GERMINATE else _parameter_problem(order, recorded)


def _parameter_problem(order: Order, recorded: ly.CommandOutcome | None) -> str:
    of_old = recorded is not None and not recorded.reason.startswith(_OUT_OF_BOUNDS)
    known = _PARAMETERS.get(order.operation, {})
    unknown = sorted(set(order.parameters) - set(known))
    if unknown:
        return f"unknown_parameter:{unknown[0]}"
    for name, value in sorted(order.parameters.items()):
        low, high = known[name]
        if of_old and name in _OF_ALPHA:
            high = _RECORDED_MOST
        if not low <= value <= high:  # NaN fails as well
            return f"{_OUT_OF_BOUNDS}{name}"
    if order.operation == ly.SEED_OP_FINE_TUNE and RATE_FACTOR not in order.parameters:
        return f"missing_parameter:{RATE_FACTOR}"
    return ""


def _wish_problem(wish: ly.CommandSeedOperation) -> str:
    """Return what is wrong with the fields that only some operations have."""
    if wish.hold and wish.operation != ly.SEED_OP_GERMINATE:
        return "unknown_parameter:hold"
    grafts = wish.operation == ly.SEED_OP_START_GRAFTING
    for name, value, known in (
        ("blend_mode", wish.blend_mode, BLEND_MODES),
        ("alpha_curve", wish.alpha_curve, frozenset(ly.AlphaCurve.values())),
    ):
        if value and not grafts:
            return f"unknown_parameter:{name}"
        if value and value not in known:
            return f"parameter_out_of_bounds:{name}"
    return ""
