"""A whole trial: two fresh processes take the same steps side by side, until one is judged or both are done."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.quarantine._judge import Finding, Reading, judge, judge_pair
from esper.core.quarantine._limits import QuarantineLimits
from esper.core.quarantine._process import QuarantinedProcess
from esper.core.quarantine._trial import Settings, Trial, encode
from esper.leyline import messages as ly

_PROCESSES: Final = 2
_POLL_SECONDS: Final = 0.02


@dataclass(frozen=True)
class QuarantineReport:
    """How a kernel's time in quarantine ended, in the words of `KernelQuarantined`."""

    verdict: ly.QuarantineVerdict
    detail: str
    steps: int
    seconds: float
    #: Most resident memory that the kernel's process had beyond what it began with.
    peak_memory_bytes: int
    #: The limits and what was measured, by name.
    figures: dict[str, float] = field(default_factory=dict)


def run_in_quarantine(
    trial: Trial, limits: QuarantineLimits | None = None, *, clock: Clock = SYSTEM_CLOCK
) -> QuarantineReport:
    """Run `trial` contained and say what was found; takes the time that `limits` state at most.

    The caller's process opens nothing of the kernel: it hands over bytes and reads numbers. Nothing of the trial is
    left when this returns: no process, thread, handle or file.

    Raises:
        OSError: no process can be started.
    """
    limits = limits or QuarantineLimits()
    settings = Settings(limits.steps, limits.learning_rate, limits.memory_bytes, _lifetime(limits))
    content = encode(trial, settings)
    began = clock.monotonic()
    with contextlib.ExitStack() as stack:
        processes: list[QuarantinedProcess] = []
        for _ in range(_PROCESSES):
            process = QuarantinedProcess(content, clock=clock)
            stack.callback(process.close)
            processes.append(process)
        finding, reading = _watch(processes, limits, clock)
        peak = max(process.peak_memory_bytes for process in processes)
    return QuarantineReport(
        verdict=finding.verdict,
        detail=finding.detail,
        steps=len(reading.steps),
        seconds=clock.monotonic() - began,
        peak_memory_bytes=peak,
        figures=limits.figures() | _figures(reading),
    )


def _watch(processes: Sequence[QuarantinedProcess], limits: QuarantineLimits, clock: Clock) -> tuple[Finding, Reading]:
    """Look at all processes in turn until one is found to be wrong or all completed."""
    start_ends = clock.monotonic() + limits.start_seconds
    ends: float | None = None
    while True:  # ends at a verdict, at the latest when a process is overdue
        now = clock.monotonic()
        readings = [process.poll() for process in processes]
        if ends is None and all(reading.phase != "starting" for reading in readings):
            ends = now + limits.wall_seconds
        overdue = now > (start_ends if ends is None else ends)
        judged = [judge(replace(reading, overdue=overdue), limits) for reading in readings]
        for finding, reading in zip(judged, readings, strict=True):
            if finding is not None:
                return finding, reading
        if all(reading.phase == "done" for reading in readings):
            return judge_pair(readings[0], readings[1], limits), readings[0]
        clock.sleep(_POLL_SECONDS)


def _lifetime(limits: QuarantineLimits) -> float:
    """Return how long a process may live that nobody ends."""
    return limits.start_seconds + limits.wall_seconds


def _figures(reading: Reading) -> dict[str, float]:
    figures = {
        **reading.figures,
        "cpu_seconds_without_progress": reading.cpu_seconds,
        "asleep_seconds": reading.asleep_seconds,
        "threads": float(reading.threads),
        "processes": float(reading.processes),
        "memory_bytes": float(reading.memory_bytes),
    }
    if reading.steps:
        figures["backward_gain"] = reading.steps[-1].backward_gain
        figures["weight_growth"] = reading.steps[-1].weight_growth
    if reading.phase == "done":
        figures["sensitivity_small"] = reading.sensitivity_small
        figures["sensitivity_large"] = reading.sensitivity_large
    return figures
