"""What Tamiyo says about itself."""

from __future__ import annotations

from esper.core.ids import derive_id
from esper.core.policy import Refusal, Term
from esper.leyline import messages as ly
from esper.tamiyo._decide import SOURCE
from esper.tamiyo._observation import loss_delta
from esper.tamiyo._state import RunState


def decision_telemetry(state: RunState, epoch: int, *, policy: str, inference_ms: float) -> ly.TelemetryPacket:
    """Return the metrics of the decision about `epoch`, without the time of writing.

    tamiyo.validation_loss and tamiyo.loss_delta (now minus the packet before; from the second packet on) are the
    policy's inputs, tamiyo.inference.latency_ms is the time from folded packet to decision.
    """
    history = state.history(epoch)
    attributes = {"run_id": state.run_id, "epoch": str(epoch), "policy": policy}
    figures = [
        ("tamiyo.validation_loss", history[-1].validation_loss, "nats"),
        ("tamiyo.inference.latency_ms", inference_ms, "ms"),
    ]
    delta = loss_delta(history)
    if delta is not None:
        figures.append(("tamiyo.loss_delta", delta, "nats"))
    return ly.TelemetryPacket(
        packet_id=derive_id(state.run_id, "telemetry", SOURCE, history[-1].event_id),
        source_subsystem=SOURCE,
        level=ly.TELEMETRY_LEVEL_INFO,
        metrics=[
            ly.MetricPoint(name=name, value=value, unit=unit, attributes=attributes) for name, value, unit in figures
        ],
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
