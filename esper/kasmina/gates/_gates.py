"""Gates: pure functions from measured evidence to a verdict with the figures behind it.

Here are G0, G2 and G4; G1, G3 and G5 have modules of their own (`_gate_gradients`, `_gate_interface`, `_gate_reset`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from esper.core.checks import check
from esper.kasmina._config import GateLimits
from esper.leyline import messages as ly


def verdict(gate: ly.SeedLifecycleGate, checks: Sequence[ly.GateCheck]) -> ly.GateEvaluated:
    """A gate passes when it has checks and every one of them passes."""
    return ly.GateEvaluated(gate=gate, passed=bool(checks) and all(each.passed for each in checks), checks=checks)


@dataclass(frozen=True)
class KernelEvidence:
    """What was seen of a fetched kernel: its values, and one forward of it on the slot's shape."""

    values_not_finite: int
    output_shape_fits: bool
    #: Largest absolute output on that forward: a kernel ends in a zero-initialised layer.
    output_abs_max: float


@dataclass(frozen=True)
class SanityEvidence:
    """What G0 looks at. `kernel` is None before a kernel was fetched; `descriptor` where none is at hand."""

    slot_known: bool
    slot_free: bool
    blueprint_id: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    descriptor: ly.BlueprintDescriptor | None = None
    kernel: KernelEvidence | None = None

    def with_kernel(self, kernel: KernelEvidence) -> SanityEvidence:
        """Return the same evidence with what was seen of the kernel."""
        return replace(self, kernel=kernel)


def sanity_gate(evidence: SanityEvidence) -> ly.GateEvaluated:
    """Judge G0: slot known and free, blueprint named, parameters finite and in bounds, kernel sound.

    The descriptor's bounds are inclusive, and exactly its parameters must be given. Without a descriptor the
    bounds are the kernel maker's to check: it refuses to make what lies outside.
    """
    parameters = evidence.parameters
    checks = [
        check("slot_known", float(evidence.slot_known), "==", 1.0),
        check("slot_free", float(evidence.slot_free), "==", 1.0),
        check("blueprint_named", float(bool(evidence.blueprint_id.strip())), "==", 1.0),
        check("parameters_not_finite", sum(not math.isfinite(value) for value in parameters.values()), "==", 0.0),
    ]
    if evidence.descriptor is not None:
        checks += _bound_checks(parameters, evidence.descriptor)
    if evidence.kernel is not None:
        checks += [
            check("kernel_values_not_finite", evidence.kernel.values_not_finite, "==", 0.0),
            check("kernel_shape_fits", float(evidence.kernel.output_shape_fits), "==", 1.0),
            check("kernel_output_at_start", evidence.kernel.output_abs_max, "==", 0.0),
        ]
    return verdict(ly.SEED_GATE_G0_SANITY, checks)


def _bound_checks(parameters: Mapping[str, float], descriptor: ly.BlueprintDescriptor) -> list[ly.GateCheck]:
    allowed = descriptor.allowed_parameters
    checks = [
        check("parameters_unknown", sum(name not in allowed for name in parameters), "==", 0.0),
        check("parameters_missing", sum(name not in parameters for name in allowed), "==", 0.0),
    ]
    for name in sorted(set(parameters) & set(allowed)):
        checks.append(check(f"{name}_min", parameters[name], ">=", allowed[name].min_value))
        checks.append(check(f"{name}_max", parameters[name], "<=", allowed[name].max_value))
    return checks


@dataclass(frozen=True)
class StabilityEvidence:
    """What G2 looks at: mean shadow loss per epoch of TRAINING, and held-out losses as they are now.

    `loss_seed_on` is the held-out loss with the seed at alpha 1, `loss_seed_off` the host's own.
    """

    epoch_losses: Sequence[float]
    loss_seed_on: float
    loss_seed_off: float


def relative_trend(losses: Sequence[float]) -> float:
    """Return how far the least-squares line through `losses` rises from first to last, as a share of the first.

    NaN when there are fewer than two, or when one is not finite.
    """
    count = len(losses)
    if count < 2 or not all(map(math.isfinite, losses)):
        return math.nan
    middle, mean = (count - 1) / 2, math.fsum(losses) / count
    slope = math.fsum((x - middle) * (y - mean) for x, y in enumerate(losses)) / math.fsum(
        (x - middle) ** 2 for x in range(count)
    )
    return slope * (count - 1) / max(abs(losses[0]), 1e-12)


def stability_gate(evidence: StabilityEvidence, limits: GateLimits) -> ly.GateEvaluated:
    """Judge G2: the shadow loss was measured long enough and does not rise; at alpha 1 the seed does no harm."""
    trend = relative_trend(evidence.epoch_losses)
    return verdict(
        ly.SEED_GATE_G2_STABILITY,
        [
            check("training_epochs", len(evidence.epoch_losses), ">=", limits.training_epochs_min),
            check("shadow_loss_trend", trend, "<=", limits.shadow_loss_rise_max),
            check("losses_not_finite", _not_finite(evidence.loss_seed_on, evidence.loss_seed_off), "==", 0.0),
            check("loss_seed_on", evidence.loss_seed_on, "<=", evidence.loss_seed_off),
        ],
    )


@dataclass(frozen=True)
class ImpactEvidence:
    """What G4 looks at: the held-out loss with the seed as the host hears it, and without it."""

    loss_seed_on: float
    loss_seed_off: float


def impact_gate(evidence: ImpactEvidence, limits: GateLimits) -> ly.GateEvaluated:
    """Judge G4: switched on, the seed lowers the held-out loss by the required share."""
    gain = evidence.loss_seed_off - evidence.loss_seed_on
    return verdict(
        ly.SEED_GATE_G4_SYSTEM_IMPACT,
        [
            check("losses_not_finite", _not_finite(evidence.loss_seed_on, evidence.loss_seed_off), "==", 0.0),
            check("loss_gain", gain, ">=", limits.gain_min * abs(evidence.loss_seed_off)),
        ],
    )


def pruning_gate(evidence: ImpactEvidence, rise_max: float) -> ly.GateEvaluated:
    """Judge G4 for a fossilised seed that is to go: without it the held-out loss rises by no more than that share."""
    rise = evidence.loss_seed_off - evidence.loss_seed_on
    return verdict(
        ly.SEED_GATE_G4_SYSTEM_IMPACT,
        [
            check("losses_not_finite", _not_finite(evidence.loss_seed_on, evidence.loss_seed_off), "==", 0.0),
            check("loss_rise", rise, "<=", rise_max * abs(evidence.loss_seed_on)),
        ],
    )


def _not_finite(*values: float) -> float:
    return float(sum(not math.isfinite(value) for value in values))
