"""What one subsystem counts of its own work, under the brief's names, emitted as telemetry."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from esper.core.errors import EsperError
from esper.core.ids import new_event_id
from esper.leyline import messages as ly
from esper.oona._latency import LatencyHistogram
from esper.oona.housekeeping._every import Every

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric
    from esper.oona.publishing._publisher import Publisher

_QUANTILES: Final = (0.5, 0.95, 0.99)
#: (name, attributes in the order of their names)
_Series = tuple[str, tuple[tuple[str, str], ...]]
#: Events that one packet carries at most; what happens more often than that is what counters are for.
_EVENTS_MAX: Final = 100


class MemberMetrics:
    """Counters, gauges and latencies of one source by dotted name; thread-safe.

    Names are declared with their units at the start: a counter stands at 0 before its first count, a name that
    nobody declared is refused. Latencies are observed in seconds and emitted in milliseconds (unit "ms") as upper
    bounds of their p50, p95 and p99, attribute `quantile`; their names end in `_ms`.
    """

    def __init__(
        self,
        source: str,
        *,
        member: str = "",
        counters: Mapping[str, str] | None = None,
        gauges: Mapping[str, str] | None = None,
        latencies: Iterable[str] = (),
    ) -> None:
        self.source = source
        self._units = {**(counters or {}), **(gauges or {})}
        self._counters: dict[_Series, float] = {(name, ()): 0.0 for name in counters or {}}
        self._counted = frozenset(counters or ())
        self._gauges: dict[_Series, float] = {}
        self._gauged = frozenset(gauges or ())
        self._latencies: dict[_Series, LatencyHistogram] = {}
        self._timed = frozenset(latencies)
        self._events: list[ly.TelemetryEvent] = []
        self._health = ly.SystemHealth(indicators={"member": member} if member else {})
        self._lock = threading.Lock()

    def count(self, name: str, by: float = 1.0, **attributes: str) -> None:
        """Raise a counter; one with attributes is counted beside the one without.

        Raises:
            KeyError: no counter of this name was declared.
        """
        _check(name, self._counted)
        series = _series(name, attributes)
        with self._lock:
            self._counters[series] = self._counters.get(series, 0.0) + by

    def gauge(self, name: str, value: float, **attributes: str) -> None:
        """Set a gauge; raises KeyError when none of this name was declared."""
        _check(name, self._gauged)
        with self._lock:
            self._gauges[_series(name, attributes)] = float(value)

    def observe(self, name: str, seconds: float, **attributes: str) -> None:
        """Count one duration; raises KeyError when no latency of this name was declared."""
        _check(name, self._timed)
        with self._lock:
            self._latencies.setdefault(_series(name, attributes), LatencyHistogram()).observe(seconds)

    def event(self, description: str, *, level: ly.TelemetryLevel = ly.TELEMETRY_LEVEL_INFO, **attributes: str) -> None:
        """Say that something happened; the next packet carries it, the latest 100 at most."""
        event = ly.TelemetryEvent(
            event_id=new_event_id(), description=description, level=level, attributes=dict(attributes)
        )
        with self._lock:
            self._events = [*self._events, event][-_EVENTS_MAX:]

    def health(self, status: ly.HealthStatus, summary: str = "") -> None:
        """Say how the member is; the packets say so until it says otherwise, UNKNOWN before the first time."""
        with self._lock:
            self._health = ly.SystemHealth(status=status, summary=summary, indicators=self._health.indicators)

    def value(self, name: str, **attributes: str) -> float:
        """Return what a counter or gauge stands at; 0.0 for one that was never touched.

        Raises:
            KeyError: neither of this name was declared.
        """
        _check(name, self._counted | self._gauged)
        series = _series(name, attributes)
        with self._lock:
            return (self._counters if name in self._counted else self._gauges).get(series, 0.0)

    def points(self) -> list[ly.MetricPoint]:
        """Return a snapshot, sorted by name and attributes."""
        with self._lock:
            plain = sorted([*self._counters.items(), *self._gauges.items()])
            timed = sorted(
                (series, [(quantile, latency.quantile_seconds(quantile)) for quantile in _QUANTILES])
                for series, latency in self._latencies.items()
            )
        return [
            *(_point(series, value, self._units[series[0]]) for series, value in plain),
            *(_point(series, s * 1e3, "ms", quantile=f"{q:g}") for series, found in timed for q, s in found),
        ]

    def packet(self) -> ly.TelemetryPacket:
        """Return the telemetry packet of a snapshot, its meta still empty; takes the events that wait.

        Its level is that of the worst event, INFO where there is none.
        """
        with self._lock:
            events, self._events, health = self._events, [], self._health
        return ly.TelemetryPacket(
            packet_id=new_event_id(),
            source_subsystem=self.source,
            level=max((event.level for event in events), default=ly.TELEMETRY_LEVEL_INFO),
            metrics=self.points(),
            events=events,
            system_health=health,
        )

    @contextmanager
    def emitted(self, fabric: Fabric) -> Iterator[None]:
        """Emit a packet every `settings.metrics_seconds` while the block runs, and a last one when it is left.

        What fails is logged and tried again at the next turn: telemetry is worth nobody's end.
        """
        emitter = _Emitter(fabric, self)
        seconds, name = fabric.settings.metrics_seconds, f"metrics-{self.source}"
        try:
            with Every(seconds, emitter.emit, name=name, failure="the metrics were not emitted"):
                yield
        finally:
            with suppress(EsperError):  # The broker may be what the block ended of.
                emitter.emit()
            emitter.close()


class _Emitter:
    def __init__(self, fabric: Fabric, metrics: MemberMetrics) -> None:
        self._fabric = fabric
        self._metrics = metrics
        self._publisher: Publisher | None = None

    def emit(self) -> None:
        """Submit one packet; raises EsperError."""
        source = self._metrics.source
        try:
            # Opened at the first turn, and not the member's own: that one may be closed when the last packet goes.
            self._publisher = self._publisher or self._fabric.publisher(source)
            self._publisher.submit(self._metrics.packet(), key=source)
        except EsperError:
            self._publisher = None  # One that failed is dead; the fabric closes it.
            raise

    def close(self) -> None:
        """Wait for what was submitted and release the connection."""
        if self._publisher is not None:
            with suppress(EsperError):  # As above.
                self._publisher.close()


def _check(name: str, declared: frozenset[str]) -> None:
    if name not in declared:
        raise KeyError(f"no metric {name!r} was declared; declared are {', '.join(sorted(declared)) or 'none'}")


def _series(name: str, attributes: Mapping[str, str]) -> _Series:
    return name, tuple(sorted(attributes.items()))


def _point(series: _Series, value: float, unit: str, **more: str) -> ly.MetricPoint:
    name, attributes = series
    return ly.MetricPoint(name=name, value=value, unit=unit, attributes={**dict(attributes), **more})
