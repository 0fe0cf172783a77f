"""What Tamiyo says about itself."""

from __future__ import annotations

from collections.abc import Mapping

from esper.core.ids import derive_id
from esper.core.policy import Refusal, Term
from esper.leyline import messages as ly
from esper.tamiyo._decide import SOURCE, Decision
from esper.tamiyo._observation import loss_delta
from esper.tamiyo._state import RunState
from esper.tamiyo.risk import QUARANTINED

#: What an event of the risk gate is about.
PAUSE, OVERRIDE, QUARANTINE = "pause", "override", "blueprint_quarantine"


def decision_telemetry(state: RunState, epoch: int, decision: Decision, *, inference_ms: float) -> ly.TelemetryPacket:
    """Return the metrics of the decision about `epoch`, without the time of writing.

    tamiyo.validation_loss and tamiyo.loss_delta (now minus the packet before; from the second packet on) are the
    policy's inputs, tamiyo.inference.latency_ms is the time from folded packet to decision. tamiyo.conservative_mode
    is 1 while the run is held back as a whole, tamiyo.blueprint.risk the risk of the blueprint that was to come
    nearer to the host, where it is registered. What the risk gate put in the place of a proposal is an event.
    """
    history, verdict = state.history(epoch), decision.verdict
    attributes = {"run_id": state.run_id, "epoch": str(epoch), "policy": decision.made.policy}
    figures = [
        _point("tamiyo.validation_loss", history[-1].validation_loss, "nats", attributes),
        _point("tamiyo.inference.latency_ms", inference_ms, "ms", attributes),
        _point("tamiyo.conservative_mode", float(verdict.conservative), "1", attributes),
    ]
    delta = loss_delta(history)
    if delta is not None:
        figures.append(_point("tamiyo.loss_delta", delta, "nats", attributes))
    if verdict.blueprint_risk is not None:
        of_blueprint = {**attributes, "blueprint_id": verdict.blueprint_id}
        figures.append(_point("tamiyo.blueprint.risk", verdict.blueprint_risk, "1", of_blueprint))
    events = _events(decision, attributes)
    return ly.TelemetryPacket(
        packet_id=derive_id(state.run_id, "telemetry", SOURCE, history[-1].event_id),
        source_subsystem=SOURCE,
        level=ly.TELEMETRY_LEVEL_WARNING if events else ly.TELEMETRY_LEVEL_INFO,
        metrics=figures,
        events=events,
    )


def term_telemetry(term: Term, *, instance: str) -> ly.TelemetryPacket:
    """Return what a member tells when another version decides from now on, without the time of writing.

    tamiyo.policy.swaps counts a promotion, tamiyo.policy.rollbacks a rollback, which is a warning.
    """
    now, before = (version.name if version is not None else "none" for version in (term.version, term.previous))
    attributes = {"version": now, "instead_of": before, "event_id": term.event_id, "member": instance}
    attributes["digest"] = term.version.digest if term.version is not None else ""
    name = "tamiyo.policy.swaps" if term.promoted else "tamiyo.policy.rollbacks"
    level = ly.TELEMETRY_LEVEL_INFO if term.promoted else ly.TELEMETRY_LEVEL_WARNING
    said = f"learned version {now} decides {'after' if term.promoted else 'again, in place of'} {before}"
    return _told(("term", instance, term.event_id), name, said, level, attributes)


def refusal_telemetry(meta: ly.EventMeta, refusal: Refusal, *, instance: str) -> ly.TelemetryPacket:
    """Return what a member tells of an event that it refuses: tamiyo.policy.refusals, with the reason."""
    attributes = {"event_id": meta.event_id, "source": meta.source, "reason": refusal.reason, "member": instance}
    said = f"refused: {refusal}"
    name = "tamiyo.policy.refusals"
    return _told(("refusal", instance, meta.event_id), name, said, ly.TELEMETRY_LEVEL_WARNING, attributes)


def _told(
    id_parts: tuple[str, ...], name: str, said: str, level: ly.TelemetryLevel, attributes: dict[str, str]
) -> ly.TelemetryPacket:
    packet_id = derive_id(SOURCE, "policy", *id_parts)
    event = ly.TelemetryEvent(event_id=packet_id, description=said, level=level, attributes=attributes)
    return ly.TelemetryPacket(
        packet_id=packet_id,
        source_subsystem=SOURCE,
        level=level,
        metrics=[ly.MetricPoint(name=name, value=1.0, unit="count", attributes=attributes)],
        events=[event],
    )


def _events(decision: Decision, attributes: Mapping[str, str]) -> list[ly.TelemetryEvent]:
    """Return what the risk gate did: one event for the command that it gave, and one for a quarantined blueprint."""
    made, verdict = decision.made, decision.verdict
    if verdict.command is None:
        return []
    rules = ",".join(trip.rule for trip in verdict.trips)
    kinds = [PAUSE if verdict.command.command_type == ly.COMMAND_PAUSE else OVERRIDE]
    kinds += [QUARANTINE] * any(trip.rule == QUARANTINED for trip in verdict.trips)
    return [
        ly.TelemetryEvent(
            event_id=derive_id(made.run_id, "risk", kind, made.state_event_id),
            description=made.override_reason,
            level=ly.TELEMETRY_LEVEL_WARNING,
            attributes={**attributes, "kind": kind, "rules": rules, "blueprint_id": verdict.blueprint_id},
        )
        for kind in kinds
    ]


def _point(name: str, value: float, unit: str, attributes: Mapping[str, str]) -> ly.MetricPoint:
    return ly.MetricPoint(name=name, value=value, unit=unit, attributes=attributes)
