"""An operator's command to a run: checked against the log, appended, and followed to its outcome."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from esper.core.approvals import registered
from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import OperationFailed, UsageError
from esper.core.ids import new_event_id
from esper.core.stacks import check_alone
from esper.leyline import messages as ly
from esper.oona import BlueprintBoard, Event, Fabric
from esper.weatherlight._run_log import RunLog, check_open, read_run_log
from esper.weatherlight._run_wishes import RUN_WISHES

#: The source whose commands name epochs instead of answering a packet.
_OPERATOR: Final = "cli"
_POLL_SECONDS: Final = 0.5
_PRUNING: Final = "structural_pruning"
_RISE_MAX: Final = "loss_rise_max"


@dataclass(frozen=True)
class RunOrder:
    """What an operator wants of a run: an operation on a seed or on the run, and at the edges of which epochs.

    `operation` is a name of `SeedOperation` in lower case ("cull"), "structural_pruning", or one of `RUN_WISHES`
    ("rollback", "pause"). `epochs` are the first and the last one, None for every epoch that is left: the command is
    applied once, at the first edge among them. `reason` is for the record. `blend_mode` and `alpha_curve` are names of
    `BlendMode` and `AlphaCurve` in lower case ("convex", "linear"), for start_grafting; `hold` lets a germinated seed
    wait for start_training.
    """

    operation: str
    seed_id: str = ""
    slot: str = ""
    blueprint_id: str = ""
    parameters: Mapping[str, float] = field(default_factory=dict)
    epochs: tuple[int, int] | None = None
    reason: str = ""
    blend_mode: str = ""
    alpha_curve: str = ""
    hold: bool = False


@dataclass(frozen=True)
class Ordered:
    """An operator's command as it stands in the log."""

    run_id: str
    command_id: str
    event_id: str
    offset: int
    first_epoch: int
    last_epoch: int


def order_run(fabric: Fabric, run_id: str, order: RunOrder, *, clock: Clock = SYSTEM_CLOCK) -> Ordered:
    """Append the command of an operator to a run; whoever trains it says in an outcome what became of it.

    Raises:
        UsageError: there is no such run, it is over, or the run cannot be told this.
        BrokerUnavailable: no broker answered, or the command was not acknowledged, within
            `settings.broker_retry_seconds`.
    """
    run = read_run_log(fabric, run_id)
    check_open(run, f"run {run_id} takes no commands")
    if run.request is not None:
        check_alone(run.request, f"run {run_id} takes no commands")
    first, last = _epochs(run, order.epochs)
    command = _wished(fabric, run, order)
    command.version = 1
    command.command_id = f"cmd-{new_event_id()}"
    command.training_run_id = run_id
    command.issued_by = _OPERATOR
    command.first_epoch, command.last_epoch = first, last
    command.issued_at.FromNanoseconds(clock.now_ns())
    with fabric.publisher(_OPERATOR) as publisher:
        receipt = publisher.publish(command, key=run_id, correlation_id=run_id, priority=_priority(command))
    return Ordered(run_id, command.command_id, receipt.event_id, receipt.offset, first, last)


def _wished(fabric: Fabric, run: RunLog, order: RunOrder) -> ly.AdaptationCommand:
    """Return the command that says what an order wants, without ids."""
    if order.operation == _PRUNING:
        return ly.AdaptationCommand(
            command_type=ly.COMMAND_STRUCTURAL_PRUNING,
            target_seed_id=order.seed_id,
            structural_pruning=_pruning(order),
        )
    if order.operation not in RUN_WISHES:
        wish = _seed_operation(fabric, run, order)
        return ly.AdaptationCommand(command_type=ly.COMMAND_SEED, target_seed_id=order.seed_id, seed_operation=wish)
    if order.seed_id or order.slot or order.blueprint_id:
        raise UsageError(
            f"{order.operation} concerns the whole run",
            cause="a seed, slot or blueprint was named",
            next_step="Name none; `esper runs command RUN cull --seed SEED` takes one seed off",
        )
    return RUN_WISHES[order.operation](order.parameters, order.reason)


def _priority(command: ly.AdaptationCommand) -> ly.MessagePriority:
    """An emergency is heard before everything else: its own signal goes before it."""
    emergency = command.command_type == ly.COMMAND_EMERGENCY
    return ly.MESSAGE_PRIORITY_CRITICAL if emergency else ly.MESSAGE_PRIORITY_NORMAL


def await_outcome(fabric: Fabric, ordered: Ordered) -> ly.CommandOutcome:
    """Return the outcome that names the command, as soon as it is in the log.

    Raises:
        OperationFailed: the command was refused unapplied, or the run ended before it could be applied.
        BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
    """
    place = ("runs", fabric.partition_of("runs", ordered.run_id))
    with fabric.reader({place: "begin"}) as reader:
        while True:  # ends with the command's outcome, its refusal, or the run
            for event in reader.read(_POLL_SECONDS):
                outcome = _outcome_of(event, ordered)
                if outcome is not None:
                    return outcome


def _outcome_of(event: Event, ordered: Ordered) -> ly.CommandOutcome | None:
    message = event.message
    if event.meta.subject != ordered.run_id:
        return None
    if isinstance(message, ly.CommandOutcome):
        if message.command_id == ordered.command_id:
            return message
        reasons = [late.reason for late in message.late_commands if late.command_id == ordered.command_id]
        if reasons:
            raise _lost(ordered, f"{reasons[0]} at epoch {message.epoch}")
    if isinstance(message, ly.TrainingRunFinished | ly.TrainingRunFailed):
        raise _lost(ordered, "the run ended first")
    return None


def _lost(ordered: Ordered, cause: str) -> OperationFailed:
    return OperationFailed(
        f"command {ordered.command_id} was not applied",
        cause=cause,
        next_step=f"`esper runs show {ordered.run_id}` shows every epoch with its outcome",
    )


def _epochs(run: RunLog, wanted: tuple[int, int] | None) -> tuple[int, int]:
    """Return the epochs that a command is to name."""
    planned = run.request.epochs if run.request is not None else 0
    following = run.epochs + 1
    # A loop of the user's own may not say how long it is.
    first, last = wanted or (following, max(planned, following) if planned else 2**31)
    if not 0 < first <= last:
        raise UsageError(f"{first}-{last} are no epochs", cause="the first is 1 and the last is not before it")
    if last < following:
        raise UsageError(
            f"run {run.run_id} takes no command for epochs up to {last}",
            cause=f"epoch {run.epochs} has its outcome already",
            next_step=f"Name epochs from {following} on",
        )
    if planned and first > planned:
        raise UsageError(
            f"run {run.run_id} takes no command for epochs from {first} on", cause=f"it has {planned} epochs"
        )
    return first, last


def _seed_operation(fabric: Fabric, run: RunLog, order: RunOrder) -> ly.CommandSeedOperation:
    from esper.kasmina import PATHS  # torch comes with it

    known = {ly.SeedOperation.Name(one).removeprefix("SEED_OP_").lower(): one for one in PATHS}
    if order.operation not in known:
        raise UsageError(
            f"there is no operation {order.operation!r}",
            cause=f"a seed knows {', '.join(sorted([*known, _PRUNING]))}, a run {', '.join(sorted(RUN_WISHES))}",
        )
    operation = known[order.operation]
    if operation == ly.SEED_OP_GERMINATE:
        _check_germination(fabric, run, order)
    else:
        _check_seed(order)
    return ly.CommandSeedOperation(
        operation=operation,
        blueprint_id=order.blueprint_id,
        slot=order.slot,
        parameters=order.parameters,
        blend_mode=_word(ly.BlendMode.items(), "BLEND_MODE_", order.blend_mode, "blend mode"),
        alpha_curve=_word(ly.AlphaCurve.items(), "ALPHA_CURVE_", order.alpha_curve, "curve"),
        hold=order.hold,
    )


def _pruning(order: RunOrder) -> ly.CommandStructuralPruning:
    _check_seed(order)
    unknown = sorted(set(order.parameters) - {_RISE_MAX})
    if unknown:
        raise UsageError(f"{_PRUNING} has no parameter {unknown[0]!r}", next_step=f"--set {_RISE_MAX}=0.01 or none")
    return ly.CommandStructuralPruning(**order.parameters)


def _check_seed(order: RunOrder) -> None:
    if not order.seed_id:
        raise UsageError(
            f"{order.operation} needs a seed", next_step="Name one with --seed; `esper runs show` lists them"
        )


def _word(items: Iterable[tuple[str, int]], prefix: str, name: str, what: str) -> Any:  # noqa: ANN401 - of any enum
    """Return the number that the contract gives a name; that of "unspecified" for none."""
    known = {word.removeprefix(prefix).lower(): number for word, number in items}
    if (name or "unspecified") not in known:
        names = ", ".join(sorted(set(known) - {"unspecified"}))
        raise UsageError(f"there is no {what} {name!r}", next_step=f"Choose one of {names}")
    return known[name or "unspecified"]


def _check_germination(fabric: Fabric, run: RunLog, order: RunOrder) -> None:
    """Refuse what no run could germinate: unknown, with wrong parameters, or withdrawn; the rest may be contained."""
    from esper.karn import KarnCatalog

    karn = KarnCatalog()
    blueprint = karn.get(order.blueprint_id)
    blueprint.check(order.parameters)
    with BlueprintBoard(fabric) as board:
        said = registered([blueprint.descriptor()], board.read())
    karn.allowed(order.blueprint_id, said, quarantine=True)
    slots = [slot.slot for slot in run.packet.slots] if run.packet is not None else []
    if not order.slot or (slots and order.slot not in slots):
        raise UsageError(
            f"run {run.run_id} has no slot {order.slot!r}",
            cause=f"it has {', '.join(slots)}" if slots else "its slots are known after its first epoch",
            next_step="Name one with --slot",
        )
