"""From what was measured to a verdict; pure. The name of a blueprint is not known here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from esper.core.quarantine._limits import QuarantineLimits
from esper.leyline import messages as ly

#: Share of its wait that a process which is overdue must have been asleep to count as blocked.
_ASLEEP_SHARE: Final = 0.5
#: What a process says when memory or threads were refused to it.
MEMORY_REFUSED: Final = "memory"
THREADS_REFUSED: Final = "threads"


@dataclass(frozen=True)
class StepReading:
    """One training step as the kernel's process measured it."""

    step: int
    #: What was not finite: "output", "loss", "gradient", "weight"; nothing where all was.
    not_finite: str = ""
    backward_gain: float = 0.0
    weight_growth: float = 0.0


@dataclass(frozen=True)
class Reading:
    """One process in quarantine as it stands: what it said, and what was seen of it from outside."""

    #: "starting", "running", "done", "failed" (it said why), or "gone" (it ended and said nothing).
    phase: str = "starting"
    steps: tuple[StepReading, ...] = ()
    #: Change of the output per change of the input, for a small and for a larger change.
    sensitivity_small: float = 0.0
    sensitivity_large: float = 0.0
    #: SHA-256 over weights, buffers and outputs at the end.
    digest: str = ""
    error_kind: str = ""
    error: str = ""
    #: Since the last sign of progress.
    idle_seconds: float = 0.0
    cpu_seconds: float = 0.0
    asleep_seconds: float = 0.0
    #: Beyond what there was before the kernel was opened.
    memory_bytes: int = 0
    threads: int = 0
    processes: int = 0
    overdue: bool = False
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """A verdict and what it rests on, in a sentence."""

    verdict: ly.QuarantineVerdict
    detail: str


def judge(reading: Reading, limits: QuarantineLimits) -> Finding | None:
    """Return what is wrong with one process so far, None where nothing is; pure.

    What bounds resources comes first, then what was measured in its steps, then how it ended or waits.
    """
    return _resources(reading, limits) or _last_step(reading, limits) or _stopped(reading, limits)


def judge_pair(one: Reading, other: Reading, limits: QuarantineLimits) -> Finding:
    """Return the verdict on two fresh processes that both took all the same steps; pure.

    Where they differ, nothing that either measured at its end can be relied on.
    """
    count = len(one.steps)
    if one.digest != other.digest:
        detail = f"the same {count} steps twice gave {one.digest[:16]} and {other.digest[:16]}"
        return Finding(ly.QUARANTINE_VERDICT_RACE, detail)
    gain = one.steps[-1].backward_gain if one.steps else 0.0
    if gain < limits.backward_gain_min:
        return Finding(
            ly.QUARANTINE_VERDICT_VANISHED,
            f"after {count} steps {gain:.3g} of a gradient comes back, {limits.backward_gain_min:.3g} must",
        )
    ratio = one.sensitivity_small / one.sensitivity_large if one.sensitivity_large > 0 else 0.0
    if ratio > limits.sensitivity_ratio_max:
        return Finding(
            ly.QUARANTINE_VERDICT_UNSTABLE,
            f"a hundred times smaller change of the input moves the output {ratio:.3g} times as much for its size",
        )
    return Finding(ly.QUARANTINE_VERDICT_COMPLETED, f"{count} steps twice, equal to the last bit")


def _resources(reading: Reading, limits: QuarantineLimits) -> Finding | None:
    if reading.memory_bytes > limits.memory_bytes:
        return Finding(
            ly.QUARANTINE_VERDICT_MEMORY,
            f"{reading.memory_bytes} bytes more after {len(reading.steps)} steps, {limits.memory_bytes} are allowed",
        )
    if reading.error_kind == MEMORY_REFUSED:
        return Finding(ly.QUARANTINE_VERDICT_MEMORY, f"memory was refused to it: {reading.error}")
    if reading.threads > limits.threads:
        return Finding(
            ly.QUARANTINE_VERDICT_THREADS, f"{reading.threads} threads of its own, {limits.threads} are allowed"
        )
    if reading.processes > limits.processes:
        return Finding(
            ly.QUARANTINE_VERDICT_THREADS, f"{reading.processes} processes of its own, {limits.processes} are allowed"
        )
    if reading.error_kind == THREADS_REFUSED:
        return Finding(ly.QUARANTINE_VERDICT_THREADS, f"a thread was refused to it: {reading.error}")
    return None


def _last_step(reading: Reading, limits: QuarantineLimits) -> Finding | None:
    if not reading.steps:
        return None
    last = reading.steps[-1]
    if last.not_finite:
        return Finding(ly.QUARANTINE_VERDICT_NOT_FINITE, f"step {last.step}: a number of its {last.not_finite} is none")
    if last.backward_gain > limits.backward_gain_max:
        return Finding(
            ly.QUARANTINE_VERDICT_EXPLOSION,
            f"step {last.step}: gradients grow {last.backward_gain:.3g} times on their way back, "
            f"{limits.backward_gain_max:.3g} are allowed",
        )
    if last.weight_growth > limits.weight_growth_max:
        return Finding(
            ly.QUARANTINE_VERDICT_EXPLOSION,
            f"step {last.step}: weights grew {last.weight_growth:.3g} times, "
            f"{limits.weight_growth_max:.3g} are allowed",
        )
    return None


def _stopped(reading: Reading, limits: QuarantineLimits) -> Finding | None:
    """Judge a process that ended without being done, or that makes no progress."""
    after = f"after {len(reading.steps)} steps"
    if reading.phase in ("failed", "gone"):
        return Finding(ly.QUARANTINE_VERDICT_CRASHED, f"{after}: {reading.error}")
    if reading.phase == "done":
        return None
    if reading.phase == "starting":
        late = f"torch was not loaded within {limits.start_seconds:g} s"
        return Finding(ly.QUARANTINE_VERDICT_CRASHED, late) if reading.overdue else None
    if reading.cpu_seconds > limits.step_cpu_seconds:
        return Finding(ly.QUARANTINE_VERDICT_HANG, f"{after}: {reading.cpu_seconds:.2f} s of processor, no progress")
    if reading.asleep_seconds > limits.stall_seconds:
        return Finding(ly.QUARANTINE_VERDICT_DEADLOCK, f"{after}: asleep for {reading.asleep_seconds:.2f} s")
    if reading.overdue:
        asleep = reading.asleep_seconds > _ASLEEP_SHARE * reading.idle_seconds
        verdict = ly.QUARANTINE_VERDICT_DEADLOCK if asleep else ly.QUARANTINE_VERDICT_HANG
        return Finding(verdict, f"{after}: not done within {limits.wall_seconds:g} s")
    return None
