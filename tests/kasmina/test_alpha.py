"""Alpha schedules and the blender."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.core.errors import UsageError
from esper.kasmina import AlphaBlender, AlphaSchedule, KasminaConfig
from esper.kasmina.grafting._alpha import ALPHA_CURVES, AlphaCurve


@given(st.sampled_from(ALPHA_CURVES), st.integers(1, 300))
def test_schedule_is_monotone_from_exactly_zero_to_exactly_one(curve: AlphaCurve, steps: int) -> None:
    """Goal: alpha only rises and meets its ends. Method: every step of random schedules."""
    schedule = AlphaSchedule(curve, steps)
    values = [schedule.at(step) for step in range(-1, steps + 2)]
    assert values[:2] == [0.0, 0.0]
    assert values[-2:] == [1.0, 1.0]
    assert all(before <= after for before, after in itertools.pairwise(values))
    assert all(0.0 < value < 1.0 for value in values[2:-2])


@pytest.mark.parametrize(("curve", "quarter"), [("linear", 0.25), ("cosine", 0.1464466), ("sigmoid", 0.0451767)])
def test_schedule_follows_its_curve(curve: AlphaCurve, quarter: float) -> None:
    """Goal: the curves differ as named. Method: a quarter of the way against values computed by hand; symmetry."""
    schedule = AlphaSchedule(curve, 40)
    assert schedule.at(10) == pytest.approx(quarter, abs=1e-6)
    assert schedule.at(20) == pytest.approx(0.5)
    assert schedule.at(30) == pytest.approx(1 - quarter, abs=1e-6)


def test_blender_changes_one_tensor_in_place() -> None:
    """Goal: alpha is one 0-d tensor for life. Method: its storage before and after a whole rise."""
    blender = AlphaBlender(device=torch.device("cpu"))
    pointer = blender.alpha.data_ptr()
    assert blender.alpha.shape == ()
    assert blender.advance_alpha() == 0.0, "without a schedule nothing moves"
    blender.begin(AlphaSchedule("linear", 4))
    seen = [blender.advance_alpha() for _ in range(6)]
    assert seen == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert blender.alpha.data_ptr() == pointer
    assert float(blender.alpha) == blender.value == 1.0
    assert torch.equal(blender(torch.tensor([2.0])), torch.tensor([2.0]))


def test_unusable_schedules_are_refused() -> None:
    """Goal: bad input is named. Method: an unknown curve, no steps, and the configuration's own checks."""
    with pytest.raises(UsageError, match="cannot follow the curve 'step'"):
        AlphaSchedule("step", 3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="in 0 steps"):
        AlphaSchedule("linear", 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"clip_norm": float("inf")},
        {"weight_decay": -1.0},
        {"warmup_steps": -1},
        {"shadow_every": 0},
        {"blend_steps": 0},
        {"blend_epochs": 0.0},
        {"alpha_curve": "step"},
        {"kernel_wait_seconds": -1.0},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_configuration_names_the_number_that_it_refuses(fields: dict[str, object]) -> None:
    """Goal: a bad setting is found at once. Method: one bad value each; the message names it."""
    with pytest.raises(UsageError, match=next(iter(fields))):
        KasminaConfig(**fields)  # type: ignore[arg-type]


def test_blend_steps_come_from_epochs_unless_given() -> None:
    """Goal: blending counts epochs or steps. Method: both ways, and a command's own epochs first."""
    assert KasminaConfig(blend_epochs=2.0).blend_steps_at(30) == 60
    assert KasminaConfig(blend_steps=5).blend_steps_at(30) == 5
    assert KasminaConfig(blend_steps=5).blend_steps_at(30, epochs=0.5) == 15
    assert KasminaConfig(blend_epochs=0.001).blend_steps_at(30) == 1
