"""What the forge counts of its own work, under the brief's names (`tezzeret.*`)."""

from __future__ import annotations

from typing import Final

from esper.leyline import messages as ly
from esper.oona import MemberMetrics
from esper.tezzeret._jobs import SOURCE, Step, Strategy

_COUNTERS: Final = {
    "tezzeret.jobs.total": "1",
    "tezzeret.jobs.completed": "1",
    "tezzeret.jobs.failed": "1",
    "tezzeret.jobs.retried": "1",
    "tezzeret.jobs.skipped": "1",
    "tezzeret.compile.eager_fallbacks": "1",
    "tezzeret.parts.made": "1",
    "tezzeret.parts.chosen": "1",
}
_GAUGES: Final = {
    "tezzeret.breaker.state": "1",
    "tezzeret.conservative_mode": "1",
    "tezzeret.compile.retry_count": "1",
}
_LATENCIES: Final = (
    "tezzeret.compile.duration_ms",
    "tezzeret.prewarm.p50_ms",
    "tezzeret.prewarm.p95_ms",
    "tezzeret.parts.compile_ms",
)


class ForgeMetrics(MemberMetrics):
    """Counters of jobs, durations of compilations and of prewarming, fallbacks to eager, and the breaker.

    `tezzeret.compile.retry_count` is that of the job that ended last; `tezzeret.breaker.state` is the number of the
    state in Leyline.
    """

    def __init__(self, member: str) -> None:
        super().__init__(SOURCE, member=member, counters=_COUNTERS, gauges=_GAUGES, latencies=_LATENCIES)
        self.breaker(ly.CIRCUIT_STATE_CLOSED, Strategy.STANDARD)

    def job(self, step: Step) -> None:
        """Count a request by what it needs; one that was ended before, or whose kernel is there, is skipped work."""
        self.count("tezzeret.jobs.total")
        if step in (Step.NOTHING, Step.FINISH):
            self.count("tezzeret.jobs.skipped")

    def compiled(self, seconds: float) -> None:
        """Count one canonical artifact that was made."""
        self.observe("tezzeret.compile.duration_ms", seconds)

    def finished(self, event: ly.CompileFinished, *, retries: int) -> None:
        """Count a good end, and what prewarming measured."""
        self.count("tezzeret.jobs.completed")
        self.gauge("tezzeret.compile.retry_count", retries)
        if event.fallback_reason:
            self.count("tezzeret.compile.eager_fallbacks")
        if event.HasField("prewarm"):
            self.observe("tezzeret.prewarm.p50_ms", event.prewarm.p50_ms / 1e3)
            self.observe("tezzeret.prewarm.p95_ms", event.prewarm.p95_ms / 1e3)

    def failed(self, event: ly.CompileFailed, *, retries: int) -> None:
        """Count an attempt that failed: another follows, or the request ends with it."""
        if event.retried:
            self.count("tezzeret.jobs.retried")
            return
        self.count("tezzeret.jobs.failed")
        self.gauge("tezzeret.compile.retry_count", retries)
        self.event(f"kernel {event.kernel_id} was not compiled", level=ly.TELEMETRY_LEVEL_WARNING, reason=event.reason)

    def breaker(self, state: ly.CircuitBreakerState, strategy: Strategy) -> None:
        """Say how the forge is."""
        conservative = strategy is Strategy.CONSERVATIVE
        self.gauge("tezzeret.breaker.state", state)
        self.gauge("tezzeret.conservative_mode", conservative)
        if conservative:
            self.health(ly.HEALTH_STATUS_DEGRADED, "conservative: canonical artifacts only, nothing is measured")
        else:
            self.health(ly.HEALTH_STATUS_HEALTHY)

    def part(self, event: ly.KernelPartCompiled) -> None:
        """Count a compiled part."""
        self.count("tezzeret.parts.made")
        self.observe("tezzeret.parts.compile_ms", event.compile_ms / 1e3)
        if event.chosen:
            self.count("tezzeret.parts.chosen")
