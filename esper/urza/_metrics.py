"""What Urza measures of its library and of its answers, under the brief's names."""

from __future__ import annotations

from typing import Final

from esper.oona import MemberMetrics

CACHE_HITS: Final = "urza.library.cache_hits"
CACHE_MISSES: Final = "urza.library.cache_misses"
EVICTIONS: Final = "urza.library.evictions"
INTEGRITY_FAILURES: Final = "urza.library.integrity_failures"
SLOW_QUERIES: Final = "urza.library.slow_queries"
BREAKER_STATE: Final = "urza.library.breaker_state"
CONSERVATIVE_MODE: Final = "urza.library.conservative_mode"
LIBRARY_LATENCY: Final = "urza.library.latency_ms"
PREFETCH_HITS: Final = "urza.prefetch.hits"
PREFETCH_MISSES: Final = "urza.prefetch.misses"
PREFETCH_ERRORS: Final = "urza.prefetch.errors"
PREFETCH_LATENCY: Final = "urza.prefetch.latency_ms"

_LIBRARY_COUNTERS: Final = {
    CACHE_HITS: "artifacts",
    CACHE_MISSES: "artifacts",
    EVICTIONS: "artifacts",
    INTEGRITY_FAILURES: "artifacts",
    SLOW_QUERIES: "queries",
}
_PREFETCH_COUNTERS: Final = {PREFETCH_HITS: "requests", PREFETCH_MISSES: "requests", PREFETCH_ERRORS: "requests"}


def library_metrics(source: str, *, member: str = "") -> MemberMetrics:
    """Return the metrics of whoever opens artifacts.

    `breaker_state` is the number of `CircuitBreakerState`, `conservative_mode` 1 while the store is spared.
    """
    gauges = {BREAKER_STATE: "1", CONSERVATIVE_MODE: "1"}
    return MemberMetrics(source, member=member, counters=_LIBRARY_COUNTERS, gauges=gauges, latencies=(LIBRARY_LATENCY,))


def worker_metrics(source: str, *, member: str) -> MemberMetrics:
    """Return the metrics of the member that answers requests, which opens artifacts too.

    A hit was answered from the catalogue, a miss asked the forge, an error was refused; latency is from
    the time at which a request was issued to its acknowledged reply.
    """
    gauges = {BREAKER_STATE: "1", CONSERVATIVE_MODE: "1"}
    return MemberMetrics(
        source,
        member=member,
        counters=_LIBRARY_COUNTERS | _PREFETCH_COUNTERS,
        gauges=gauges,
        latencies=(LIBRARY_LATENCY, PREFETCH_LATENCY),
    )
