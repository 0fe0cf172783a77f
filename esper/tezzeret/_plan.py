"""What the settings ask of the forge."""

from __future__ import annotations

from dataclasses import dataclass

from esper.core.settings import Settings


@dataclass(frozen=True)
class ForgePlan:
    """How often the forge tries, when its breaker opens, and how much it measures."""

    attempts_max: int = 3
    backoff_seconds: float = 0.5
    failures_max: int = 3
    open_seconds: float = 30.0
    samples: int = 200

    @classmethod
    def of(cls, settings: Settings) -> ForgePlan:
        """Return the plan that the settings ask for."""
        return cls(
            attempts_max=settings.compile_attempts_max,
            backoff_seconds=settings.compile_backoff_seconds,
            failures_max=settings.compile_failures_max,
            open_seconds=settings.compile_open_seconds,
            samples=settings.prewarm_samples,
        )
