"""Gates as functions of evidence."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.kasmina import (
    GateLimits,
    ImpactEvidence,
    KernelEvidence,
    SanityEvidence,
    StabilityEvidence,
    impact_gate,
    sanity_gate,
    stability_gate,
)
from esper.kasmina.gates._gates import relative_trend
from esper.leyline import messages as ly

LIMITS = GateLimits()
LOSSES = st.floats(1e-3, 1e3)
NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf])
BOUNDED = ly.BlueprintDescriptor(
    blueprint_id="BP009",
    allowed_parameters={"depth": ly.BlueprintParameterBounds(min_value=1.0, max_value=4.0)},
)


def failed(gate: ly.GateEvaluated) -> set[str]:
    """Return the names of the checks that did not pass."""
    assert gate.passed == all(check.passed for check in gate.checks)
    return {check.name for check in gate.checks if not check.passed}


def sanity(**changes: object) -> SanityEvidence:
    """Return evidence that passes G0, but for `changes`."""
    fields: dict[str, object] = {
        "slot_known": True,
        "slot_free": True,
        "blueprint_id": "BP009",
        "parameters": {"depth": 2.0},
        "descriptor": BOUNDED,
        "kernel": KernelEvidence(0, True, 0.0),
    }
    return SanityEvidence(**(fields | changes))  # type: ignore[arg-type]


def test_sanity_passes_sound_evidence() -> None:
    """Goal: G0 lets the sound through, with its figures. Method: good evidence; the bounds are inclusive."""
    gate = sanity_gate(sanity())
    assert gate.gate == ly.SEED_GATE_G0_SANITY
    assert failed(gate) == set()
    for depth in (1.0, 4.0):
        assert sanity_gate(sanity(parameters={"depth": depth})).passed


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"slot_known": False}, "slot_known"),
        ({"slot_free": False}, "slot_free"),
        ({"blueprint_id": " "}, "blueprint_named"),
        ({"parameters": {"depth": math.nan}}, "parameters_not_finite"),
        ({"parameters": {"depth": math.inf}}, "parameters_not_finite"),
        ({"parameters": {"depth": 0.999}}, "depth_min"),
        ({"parameters": {"depth": 4.001}}, "depth_max"),
        ({"parameters": {}}, "parameters_missing"),
        ({"parameters": {"depth": 2.0, "width": 1.0}}, "parameters_unknown"),
        ({"kernel": KernelEvidence(1, True, 0.0)}, "kernel_values_not_finite"),
        ({"kernel": KernelEvidence(0, False, math.nan)}, "kernel_shape_fits"),
        ({"kernel": KernelEvidence(0, True, 0.1)}, "kernel_output_at_start"),
    ],
)
def test_sanity_fails_each_fault_by_name(changes: dict[str, object], name: str) -> None:
    """Goal: G0 finds every fault of the predecessor (infinity, unknown parameters, ...). Method: one fault each."""
    assert name in failed(sanity_gate(sanity(**changes)))


@given(st.lists(LOSSES, min_size=2, max_size=8), LOSSES, LOSSES)
def test_stability_is_what_it_says(losses: list[float], on: float, off: float) -> None:
    """Goal: G2 = enough evidence, no rising shadow loss, no harm at alpha 1. Method: random finite evidence."""
    gate = stability_gate(StabilityEvidence(losses, on, off), LIMITS)
    expected = relative_trend(losses) <= LIMITS.shadow_loss_rise_max and on <= off
    assert gate.passed == expected
    assert gate.gate == ly.SEED_GATE_G2_STABILITY


@given(st.lists(LOSSES, max_size=6), st.integers(0, 7), NOT_FINITE)
def test_stability_fails_on_anything_not_finite(losses: list[float], place: int, value: float) -> None:
    """Goal: NaN and infinity never pass. Method: one of them anywhere in the evidence."""
    spoiled = [2.0, *losses, 1.0]
    spoiled.insert(place, value)
    assert not stability_gate(StabilityEvidence(spoiled, 0.5, 1.0), LIMITS).passed
    assert not stability_gate(StabilityEvidence([2.0, 1.0], value, 1.0), LIMITS).passed
    assert not stability_gate(StabilityEvidence([2.0, 1.0], 0.5, value), LIMITS).passed


@pytest.mark.parametrize("losses", [(), (1.0,)])
def test_stability_fails_without_enough_evidence(losses: tuple[float, ...]) -> None:
    """Goal: absent evidence blocks. Method: no epoch, one epoch of TRAINING."""
    gate = stability_gate(StabilityEvidence(losses, 0.5, 1.0), LIMITS)
    assert {"training_epochs", "shadow_loss_trend"} <= failed(gate)


def test_trend_is_the_least_squares_rise_over_the_first() -> None:
    """Goal: the trend is what its name says. Method: lines with a known slope, and noise that cancels."""
    assert relative_trend([2.0, 1.5, 1.0]) == pytest.approx(-0.5)
    assert relative_trend([1.0, 2.0]) == pytest.approx(1.0)
    assert relative_trend([1.0, 3.0, 1.0]) == pytest.approx(0.0)
    assert math.isnan(relative_trend([1.0]))


@given(LOSSES, LOSSES)
def test_impact_asks_for_a_real_gain(on: float, off: float) -> None:
    """Goal: G4 = the held-out loss falls by the required share. Method: random losses against the definition."""
    gate = impact_gate(ImpactEvidence(on, off), LIMITS)
    assert gate.gate == ly.SEED_GATE_G4_SYSTEM_IMPACT
    assert gate.passed == (off - on >= LIMITS.gain_min * off)
    assert not impact_gate(ImpactEvidence(off, off), LIMITS).passed, "no effect is no gain"


@given(NOT_FINITE, LOSSES)
def test_impact_fails_on_anything_not_finite(value: float, loss: float) -> None:
    """Goal: infinity is no gain. Method: either side not finite (an infinite loss without the seed included)."""
    assert not impact_gate(ImpactEvidence(value, loss), LIMITS).passed
    assert not impact_gate(ImpactEvidence(loss, value), LIMITS).passed
