"""Quarantine: a kernel's training steps in processes of their own, with limits, on copies; the verdict is measured."""

from esper.core.quarantine._judge import Finding, Reading, StepReading, judge, judge_pair
from esper.core.quarantine._limits import QuarantineLimits
from esper.core.quarantine._run import QuarantineReport, run_in_quarantine
from esper.core.quarantine._trial import Trial

__all__ = [
    "Finding",
    "QuarantineLimits",
    "QuarantineReport",
    "Reading",
    "StepReading",
    "Trial",
    "judge",
    "judge_pair",
    "run_in_quarantine",
]
