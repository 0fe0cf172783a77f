"""Verdicts from readings alone: each sensor, its bound, and which comes first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from esper.core.errors import UsageError
from esper.core.quarantine import QuarantineLimits, Reading, StepReading, judge, judge_pair
from esper.leyline import messages as ly

LIMITS = QuarantineLimits()
SOUND = StepReading(step=24, backward_gain=0.1, weight_growth=1.0)
RUNNING = Reading(phase="running", steps=(SOUND,))
DONE = replace(RUNNING, phase="done", digest="a" * 64, sensitivity_small=1.0, sensitivity_large=1.0)

CASES = {
    "memory": (replace(RUNNING, memory_bytes=LIMITS.memory_bytes + 1), ly.QUARANTINE_VERDICT_MEMORY),
    "memory refused": (replace(RUNNING, phase="failed", error_kind="memory"), ly.QUARANTINE_VERDICT_MEMORY),
    "threads": (replace(RUNNING, threads=LIMITS.threads + 1), ly.QUARANTINE_VERDICT_THREADS),
    "processes": (replace(RUNNING, processes=1), ly.QUARANTINE_VERDICT_THREADS),
    "threads refused": (replace(RUNNING, phase="failed", error_kind="threads"), ly.QUARANTINE_VERDICT_THREADS),
    "NaN": (replace(RUNNING, steps=(StepReading(3, "output"),)), ly.QUARANTINE_VERDICT_NOT_FINITE),
    "gradients": (replace(RUNNING, steps=(replace(SOUND, backward_gain=1.1e4),)), ly.QUARANTINE_VERDICT_EXPLOSION),
    "weights": (replace(RUNNING, steps=(replace(SOUND, weight_growth=1.1e3),)), ly.QUARANTINE_VERDICT_EXPLOSION),
    "error": (replace(RUNNING, phase="failed", error="ValueError"), ly.QUARANTINE_VERDICT_CRASHED),
    "killed": (replace(RUNNING, phase="gone", error="SIGSEGV"), ly.QUARANTINE_VERDICT_CRASHED),
    "never started": (Reading(overdue=True), ly.QUARANTINE_VERDICT_CRASHED),
    "busy": (replace(RUNNING, cpu_seconds=3.1), ly.QUARANTINE_VERDICT_HANG),
    "asleep": (replace(RUNNING, asleep_seconds=2.1), ly.QUARANTINE_VERDICT_DEADLOCK),
    "late and busy": (replace(RUNNING, overdue=True, idle_seconds=1.0), ly.QUARANTINE_VERDICT_HANG),
    "late and asleep": (
        replace(RUNNING, overdue=True, idle_seconds=1.0, asleep_seconds=0.9),
        ly.QUARANTINE_VERDICT_DEADLOCK,
    ),
}


@pytest.mark.parametrize(("reading", "verdict"), CASES.values(), ids=CASES)
def test_each_sensor_has_its_verdict(reading: Reading, verdict: ly.QuarantineVerdict) -> None:
    """Goal: every sensor beyond its bound gives its own verdict and says what it saw. Method: one reading each."""
    finding = judge(reading, LIMITS)
    assert finding is not None
    assert finding.verdict == verdict
    assert finding.detail


@pytest.mark.parametrize(
    "reading",
    [
        Reading(),
        RUNNING,
        DONE,
        replace(RUNNING, memory_bytes=LIMITS.memory_bytes, threads=LIMITS.threads),
        replace(RUNNING, cpu_seconds=LIMITS.step_cpu_seconds, asleep_seconds=LIMITS.stall_seconds),
        # The end is zero at first, so that nothing comes back: only the last step shows that nothing ever does.
        replace(RUNNING, steps=(replace(SOUND, backward_gain=0.0),)),
        # A starved process is neither busy nor asleep.
        replace(RUNNING, idle_seconds=9.0),
    ],
)
def test_within_bounds_nothing_is_found(reading: Reading) -> None:
    """Goal: at its bound, at birth and while it waits for a processor a kernel is not accused. Method: no finding."""
    assert judge(reading, LIMITS) is None


def test_what_bounds_resources_comes_first() -> None:
    """Goal: a kernel that leaks, makes NaN and hangs is found by its memory. Method: one reading with all three."""
    reading = replace(RUNNING, memory_bytes=LIMITS.memory_bytes + 1, steps=(StepReading(3, "output"),), cpu_seconds=9.0)
    finding = judge(reading, LIMITS)
    assert finding is not None
    assert finding.verdict == ly.QUARANTINE_VERDICT_MEMORY


PAIRS = {
    "equal": (DONE, DONE, ly.QUARANTINE_VERDICT_COMPLETED),
    "race": (DONE, replace(DONE, digest="b" * 64), ly.QUARANTINE_VERDICT_RACE),
    "race before unstable": (
        replace(DONE, sensitivity_small=99.0),
        replace(DONE, digest="b" * 64),
        ly.QUARANTINE_VERDICT_RACE,
    ),
    "vanished": (
        replace(DONE, steps=(replace(SOUND, backward_gain=9e-7),)),
        DONE,
        ly.QUARANTINE_VERDICT_VANISHED,
    ),
    "unstable": (replace(DONE, sensitivity_small=31.0), DONE, ly.QUARANTINE_VERDICT_UNSTABLE),
    "jumps of few samples": (replace(DONE, sensitivity_small=10.0), DONE, ly.QUARANTINE_VERDICT_COMPLETED),
    "does not move at all": (
        replace(DONE, sensitivity_small=0.0, sensitivity_large=0.0),
        DONE,
        ly.QUARANTINE_VERDICT_COMPLETED,
    ),
}


@pytest.mark.parametrize(("one", "other", "verdict"), PAIRS.values(), ids=PAIRS)
def test_two_that_are_done(one: Reading, other: Reading, verdict: ly.QuarantineVerdict) -> None:
    """Goal: two processes that took all steps are compared first, then measured. Method: each verdict from a pair of
    readings.
    """
    assert judge_pair(one, other, LIMITS).verdict == verdict


@pytest.mark.parametrize("change", [{"steps": 0}, {"wall_seconds": float("nan")}, {"memory_bytes": -1}])
def test_limits_that_bound_nothing_are_refused(change: dict[str, float]) -> None:
    """Goal: zero, negative and undefined limits are refused by name. Method: the error of each."""
    with pytest.raises(UsageError, match=next(iter(change))):
        QuarantineLimits(**change)  # type: ignore[arg-type]  # wrong on purpose
