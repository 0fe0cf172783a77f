"""The verdict on one epoch's edge, and the events that say so; pure.

Every event gets its id here, derived from run, epoch and its index among all seed events of the run, so that
a second attempt at the same edge names them alike, and moves can name the gates that allowed them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from esper.core.errors import IntegrityError
from esper.core.ids import derive_id
from esper.core.ports import EdgeDecision
from esper.kasmina.lifecycle._commands import REASONS
from esper.kasmina.lifecycle._lifecycle import FALLING_STAGES, GUARDS, SeedRecord, gate_label, gate_name
from esper.kasmina.lifecycle._orders import RATE_FACTOR, TUNE_EPOCHS, Order, Refusal
from esper.leyline import messages as ly
from esper.leyline.registry import EventMessage

#: How a rejection for want of a kernel begins; a re-execution takes it from the record, for it cannot measure it.
KERNEL_UNAVAILABLE = "kernel_unavailable:"
#: Why a command is refused that nobody knows how to carry out, or that nobody knew when it was recorded.
UNSUPPORTED = "unsupported_command"
#: Why seeds are culled by COMMAND_EMERGENCY, as their moves say it.
EMERGENCY = "emergency"


@dataclass(frozen=True)
class Edge:
    """Which edge is decided; `first_index` counts the run's seed events before it."""

    run_id: str
    attempt: int
    epoch: int
    first_index: int


@dataclass(frozen=True)
class Findings:
    """What was measured for an order. `problem` refuses it before any gate's verdict counts."""

    gates: Sequence[ly.GateEvaluated] = ()
    problem: str = ""
    kernel_digest: str = ""
    alpha: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    #: How the kernel fared in quarantine, where it was not even tried on the host.
    quarantined: ly.KernelQuarantined | None = None
    #: The stages on the way, where they are not the order's own.
    path: tuple[ly.SeedLifecycleStage, ...] | None = None
    #: What was chosen that request and command left open, by name.
    choices: Mapping[str, float] = field(default_factory=dict)
    #: Of a blend: how, and along which curve.
    blend_mode: ly.BlendMode = ly.BLEND_MODE_UNSPECIFIED
    alpha_curve: ly.AlphaCurve = ly.ALPHA_CURVE_UNSPECIFIED


#: What may happen to a seed at an edge.
SeedEvent = ly.GateEvaluated | ly.SeedStageChanged | ly.SeedMoveRejected | ly.SeedTuned | ly.KernelQuarantined


class EdgeEvents:
    """Collects the events of one edge and gives each its id."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self.events: list[EventMessage] = []

    def add(self, event: SeedEvent) -> str:
        """Append `event`, stamped with run, attempt, epoch and id; return the id."""
        edge = self._edge
        if isinstance(event, ly.KernelQuarantined):
            event.training_run_id = edge.run_id
        else:
            event.run_id = edge.run_id
        event.attempt, event.epoch = edge.attempt, edge.epoch
        event.meta.event_id = derive_id(edge.run_id, "seed", edge.epoch, edge.first_index + len(self.events))
        self.events.append(event)
        return event.meta.event_id


def no_command(reason: str = "") -> EdgeDecision:
    """Return the verdict where nothing was commanded."""
    return EdgeDecision(result=ly.COMMAND_RESULT_NONE, reason=reason)


def refuse(edge: Edge, refusal: Refusal) -> EdgeDecision:
    """Return the rejection of a command; a refused move is an event as well."""
    collected = EdgeEvents(edge)
    if refusal.order is not None:
        _add_rejection(collected, refusal.order, refusal.reason, ())
    return EdgeDecision(
        result=ly.COMMAND_RESULT_REJECTED,
        reason=refusal.reason,
        seed_id=refusal.order.seed_id if refusal.order else "",
        events=collected.events,
    )


def decide_order(edge: Edge, order: Order, findings: Findings) -> EdgeDecision:
    """Return what becomes of a legal order given what was measured for it.

    Applied: one event per gate, then one per stage on the way. Refused by a problem or a failed gate: the gates
    that were measured, what was found in quarantine, then one rejection. An order without a path changes how the
    seed learns, where it stands.
    """
    collected = EdgeEvents(edge)
    gate_ids = {gate.gate: _add_gate(collected, order, gate) for gate in findings.gates}
    failed = [gate_name(gate.gate) for gate in findings.gates if not gate.passed]
    reason = findings.problem or (f"gate:{failed[0]}" if failed else "")
    if findings.quarantined is not None:
        _add_quarantine(collected, order, findings.quarantined)
    if reason:
        _add_rejection(collected, order, reason, gate_ids.values())
    elif order.path:
        _add_moves(collected, order, findings, gate_ids)
    else:
        _add_tuning(collected, order)
    return EdgeDecision(
        result=ly.COMMAND_RESULT_REJECTED if reason else ly.COMMAND_RESULT_APPLIED,
        reason=reason,
        seed_id=order.seed_id,
        kernel_digest=findings.kernel_digest,
        events=collected.events,
        gate_verdicts={gate_name(gate.gate): gate.passed for gate in findings.gates},
        choices={} if reason else findings.choices,
    )


def _add_gate(collected: EdgeEvents, order: Order, gate: ly.GateEvaluated) -> str:
    event = ly.GateEvaluated()
    event.CopyFrom(gate)
    event.seed_id, event.command_id = order.seed_id, order.command_id
    return collected.add(event)


def _add_quarantine(collected: EdgeEvents, order: Order, quarantined: ly.KernelQuarantined) -> None:
    event = ly.KernelQuarantined()
    event.CopyFrom(quarantined)
    event.seed_id, event.slot, event.blueprint_id = order.seed_id, order.slot, order.blueprint_id
    event.command_id = order.command_id
    collected.add(event)


def _add_rejection(collected: EdgeEvents, order: Order, reason: str, gate_ids: Iterable[str]) -> None:
    collected.add(
        ly.SeedMoveRejected(
            seed_id=order.seed_id,
            from_stage=order.from_stage,
            to_stage=order.to_stage,
            reason=reason,
            command_id=order.command_id,
            gate_event_ids=gate_ids,
        )
    )


def _add_moves(
    collected: EdgeEvents, order: Order, findings: Findings, gate_ids: Mapping[ly.SeedLifecycleGate, str]
) -> None:
    stage = order.from_stage
    for following in order.path if findings.path is None else findings.path:
        guards = GUARDS.get(following, ())
        move = ly.SeedStageChanged(
            seed_id=order.seed_id,
            slot=order.slot,
            blueprint_id=order.blueprint_id,
            from_stage=stage,
            to_stage=following,
            reason=order.reason,
            command_id=order.command_id,
            alpha=findings.alpha,
            gate_event_ids=[gate_ids[guard] for guard in guards if guard in gate_ids],
            gates_not_measured=[guard for guard in guards if guard not in gate_ids],
            metrics=dict(findings.metrics),
        )
        if following == ly.SEED_STAGE_BLENDING:
            move.blend_mode, move.alpha_curve = findings.blend_mode, findings.alpha_curve
        collected.add(move)
        stage = following


def _add_tuning(collected: EdgeEvents, order: Order) -> None:
    """Add what FINE_TUNE asks for, or the end of it that CANCEL asks for."""
    collected.add(
        ly.SeedTuned(
            seed_id=order.seed_id,
            stage=order.from_stage,
            rate_factor=order.parameters.get(RATE_FACTOR, 1.0),
            epochs=round(order.parameters.get(TUNE_EPOCHS, 1.0)) if order.operation == ly.SEED_OP_FINE_TUNE else 0,
            reason=order.reason,
            command_id=order.command_id,
        )
    )


def forced_off(edge: Edge, seeds: Sequence[tuple[SeedRecord, str, float]]) -> list[EventMessage]:
    """Return the moves that take seeds (record, reason, alpha) off the host at once and bar their slots."""
    return _culled(edge, seeds)


def cull_in_emergency(
    edge: Edge, growing: Sequence[tuple[SeedRecord, float]], *, command_id: str
) -> list[EventMessage]:
    """Return the moves that take all growing seeds (record, alpha) off the host at once and bar their slots."""
    return _culled(edge, [(record, EMERGENCY, alpha) for record, alpha in growing], command_id=command_id)


def _culled(edge: Edge, seeds: Sequence[tuple[SeedRecord, str, float]], *, command_id: str = "") -> list[EventMessage]:
    collected = EdgeEvents(edge)
    for record, reason, alpha in seeds:
        falling = record.stage in FALLING_STAGES
        order = Order(
            operation=ly.SEED_OP_CULL,
            seed_id=record.seed_id,
            slot=record.slot,
            blueprint_id=record.blueprint_id,
            from_stage=record.stage,
            path=(ly.SEED_STAGE_EMBARGOED,) if falling else (ly.SEED_STAGE_CULLED, ly.SEED_STAGE_EMBARGOED),
            command_id=command_id,
        )
        before = len(collected.events)
        _add_moves(collected, order, Findings(alpha=alpha), {})
        for event in collected.events[before:]:
            assert isinstance(event, ly.SeedStageChanged), "a cull consists of moves"
            event.reason = reason
    return collected.events


def is_measured(gate: ly.SeedLifecycleGate, recorded: ly.CommandOutcome | None) -> bool:
    """Whether `gate` is to be measured: always, but for a re-execution of what was recorded before it had a sensor."""
    if recorded is None or gate_name(gate) in recorded.gate_verdicts:
        return True
    return recorded.reason == unavailable(gate)


def unavailable(gate: ly.SeedLifecycleGate) -> str:
    """Return the reason for which a move is refused whose gate nothing can measure, "gate_unavailable:G2"."""
    return f"gate_unavailable:{gate_label(gate)}"


def recorded_without_measuring(recorded: ly.CommandOutcome) -> EdgeDecision | None:
    """Return a recorded verdict that no measurement stands behind; None when it must be measured again."""
    if recorded.result == ly.COMMAND_RESULT_NONE:
        return no_command(recorded.reason)
    if recorded.result == ly.COMMAND_RESULT_REJECTED and recorded.reason in (*REASONS, UNSUPPORTED):
        return EdgeDecision(result=ly.COMMAND_RESULT_REJECTED, reason=recorded.reason)
    return None


def check_against_record(decision: EdgeDecision, recorded: ly.CommandOutcome) -> None:
    """Compare a re-executed verdict with the recorded one.

    Raises:
        IntegrityError: they differ; the message says in what.
    """
    recorded_verdicts = dict(recorded.gate_verdicts)
    for name in sorted(set(decision.gate_verdicts) | set(recorded_verdicts)):
        if decision.gate_verdicts.get(name) != recorded_verdicts.get(name):
            raise _differs(recorded, name, decision.gate_verdicts.get(name), recorded_verdicts.get(name))
    for name in sorted(recorded.choices):
        if decision.choices.get(name) != recorded.choices[name]:
            raise _differs(recorded, name, decision.choices.get(name), recorded.choices[name])
    if decision.result != recorded.result:
        raise _differs(
            recorded,
            "the result",
            ly.CommandResult.Name(decision.result),
            ly.CommandResult.Name(recorded.result),
        )
    if decision.reason != recorded.reason:
        raise _differs(recorded, "the reason", decision.reason, recorded.reason)


def _differs(recorded: ly.CommandOutcome, what: str, now: object, then: object) -> IntegrityError:
    return IntegrityError(
        f"epoch {recorded.epoch} of run {recorded.run_id!r} does not re-execute as recorded",
        cause=f"{what} is {now!r} now and {then!r} in the log",
        next_step="compare the numerics fingerprints of both attempts; `esper runs verify` names the first difference",
    )
