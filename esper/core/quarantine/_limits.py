"""What a kernel may take in quarantine, and what counts as out of bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Final

from esper.core.errors import UsageError

_MEBIBYTE: Final = 1 << 20


@dataclass(frozen=True)
class QuarantineLimits:
    """Limits of one trial; its caller waits `start_seconds + wall_seconds` and a moment at most.

    Raises:
        UsageError: a limit is not a finite number above 0; the message names it.
    """

    #: Until both processes have loaded torch (2 s on an idle machine).
    start_seconds: float = 20.0
    #: From then on until the trial ends, whatever it does.
    wall_seconds: float = 10.0
    #: Processor time between two signs of progress; a step of a seed takes milliseconds.
    step_cpu_seconds: float = 3.0
    #: Time between two signs of progress in which the process was asleep at every look.
    stall_seconds: float = 2.0
    #: Resident memory beyond what the process had before it opened the kernel.
    memory_bytes: int = 256 * _MEBIBYTE
    #: Threads beyond those that torch itself had started.
    threads: int = 32
    #: Processes that the kernel may start.
    processes: int = 0
    steps: int = 24
    #: Of Adam, as Kasmina trains seeds.
    learning_rate: float = 3e-3
    #: Largest norm of a gradient inside the kernel over that of the one that came in; each as `_steps` scales it.
    backward_gain_max: float = 1e4
    #: The same after the last step, at least: less means that nothing before the last layers can learn.
    backward_gain_min: float = 1e-6
    #: Norm of the trained numbers over their first norm plus 1.
    weight_growth_max: float = 1e3
    #: How much more a change of a ten-thousandth moves the output than one of a hundredth does, each for its size.
    #: 1 for what is smooth, at most 10 where a share of samples jumps that shrinks with the change, 100 for noise.
    sensitivity_ratio_max: float = 30.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not math.isfinite(value) or value < 0 or (value == 0 and each.name != "processes"):
                raise UsageError(
                    f"the quarantine's {each.name}={value!r} cannot be used", next_step="give a finite number above 0"
                )

    def figures(self) -> dict[str, float]:
        """Return every limit by its name, as events record it."""
        return {f"limit_{each.name}": float(getattr(self, each.name)) for each in fields(self)}
