"""What stands between a candidate and the right to decide."""

from esper.simic.promotion._gates import Canary, GateBounds, Judged, judge, latency_p99_ms

__all__ = ["Canary", "GateBounds", "Judged", "judge", "latency_p99_ms"]
