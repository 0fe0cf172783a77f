"""G1: the seed's gradient is healthy, and neither side of the isolation reached the other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from esper.core.checks import check
from esper.kasmina._config import GateLimits
from esper.kasmina.gates._gates import verdict
from esper.leyline import messages as ly


@dataclass(frozen=True)
class GradientRecord:
    """L2 norms of a seed's gradient, before clipping, over `steps` steps; NaN without any."""

    steps: int = 0
    lowest: float = math.nan
    highest: float = math.nan


#: No step was taken.
NO_GRADIENTS: Final = GradientRecord()


@dataclass(frozen=True)
class GradientEvidence:
    """What G1 looks at: the norms of a rehearsal or of an epoch, and what leaked meanwhile (counts)."""

    gradients: GradientRecord
    #: Tensors of the host (parameters, buffers, gradients, random streams) that a pass of the seed changed.
    host_changes: int
    #: Changes of the seed by anyone but its own optimiser, gradients of the host's backward included.
    seed_changes: int


def gradient_gate(evidence: GradientEvidence, limits: GateLimits) -> ly.GateEvaluated:
    """Judge G1: gradients were measured, are finite, within bounds and not vanished; nothing leaked."""
    record = evidence.gradients
    norms = (record.lowest, record.highest)
    return verdict(
        ly.SEED_GATE_G1_GRADIENT_HEALTH,
        [
            check("gradient_steps", record.steps, ">=", 1.0),
            check("norms_not_finite", sum(not math.isfinite(norm) for norm in norms), "==", 0.0),
            check("gradient_norm_max", record.highest, "<=", limits.gradient_norm_max),
            check("gradient_norm_not_vanished", record.highest, ">=", limits.gradient_norm_min),
            check("host_changed_by_seed", evidence.host_changes, "==", 0.0),
            check("seed_changed_by_host", evidence.seed_changes, "==", 0.0),
        ],
    )
