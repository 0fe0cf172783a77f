"""What Tamiyo says about itself."""

from __future__ import annotations

from esper.core.ids import derive_id
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
