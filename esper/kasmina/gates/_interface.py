"""G3: what the seed gives fits what the host expects at its slot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from esper.core.checks import check
from esper.kasmina.gates._gates import verdict
from esper.leyline import messages as ly


@dataclass(frozen=True)
class InterfaceEvidence:
    """What G3 looks at: the seed on activations that the host itself made, at each call of its slot.

    Broadcasting and type promotion would let a seed of another shape or dtype pass unnoticed in a forward.
    """

    #: Calls of the slot's module in one forward.
    calls: int
    #: Calls in which the seed's output has another shape, dtype or device than the host's.
    shapes_differ: int
    dtypes_differ: int
    devices_differ: int
    #: Calls with an output that is not finite.
    not_finite: int
    #: Mean time of the seed's forward; evidence only, no verdict depends on how long it took.
    latency_ms: float


def interface_gate(evidence: InterfaceEvidence) -> ly.GateEvaluated:
    """Judge G3: measured on every call of the slot, and equal in shape, dtype and device each time."""
    return verdict(
        ly.SEED_GATE_G3_INTERFACE,
        [
            check("slot_calls", evidence.calls, ">=", 1.0),
            check("shapes_differ", evidence.shapes_differ, "==", 0.0),
            check("dtypes_differ", evidence.dtypes_differ, "==", 0.0),
            check("devices_differ", evidence.devices_differ, "==", 0.0),
            check("outputs_not_finite", evidence.not_finite, "==", 0.0),
            check("latency_ms", evidence.latency_ms, ">=", 0.0),
        ],
    )


@dataclass(frozen=True)
class Seam:
    """One call of a slot's module: shape, dtype and device of the host's output and of the seed's."""

    host: tuple[object, object, object]
    seed: tuple[object, object, object]
    finite: bool


def evidence_of(seams: Sequence[Seam], *, latencies_ms: Sequence[float]) -> InterfaceEvidence:
    """Count what differs between host and seed over the calls of one forward."""
    shapes, dtypes, devices = (sum(seam.host[at] != seam.seed[at] for seam in seams) for at in range(3))
    return InterfaceEvidence(
        calls=len(seams),
        shapes_differ=shapes,
        dtypes_differ=dtypes,
        devices_differ=devices,
        not_finite=sum(not seam.finite for seam in seams),
        latency_ms=math.fsum(latencies_ms) / len(latencies_ms) if latencies_ms else math.nan,
    )
