"""What Karn counts, under the brief's names."""

from __future__ import annotations

from typing import Final

from esper.core.approvals import (
    APPROVAL_OUTDATED,
    APPROVAL_REQUIRED,
    QUARANTINE_ONLY,
    WITHDRAWN,
    Approvals,
    refusal,
)
from esper.oona import MemberMetrics

SOURCE: Final = "karn"

REQUESTS: Final = "karn.requests.total"
REQUESTS_FAILED: Final = "karn.requests.failed"
BREAKER_DENIED: Final = "karn.breaker.denied"
BREAKER_OPENED: Final = "karn.breaker.open_total"
BREAKER_STATE: Final = "karn.breaker.state"
SELECTION_LATENCY: Final = "karn.selection.latency_ms"
#: Tier of what was selected -> its counter.
SELECTED: Final = {
    "SAFE": "karn.selection.safe",
    "EXPERIMENTAL": "karn.selection.experimental",
    "HIGH_RISK": "karn.selection.adversarial",
}
REGISTERED: Final = "karn.blueprints.registered"
ALLOWED: Final = "karn.blueprints.allowed"
REFUSED: Final = "karn.blueprints.refused"


def karn_metrics(member: str = "") -> MemberMetrics:
    """Return the metrics of one Karn, all counters at 0; `member` names its process."""
    return MemberMetrics(
        SOURCE,
        member=member,
        counters={
            REQUESTS: "requests",
            REQUESTS_FAILED: "requests",
            BREAKER_DENIED: "requests",
            BREAKER_OPENED: "openings",
            **dict.fromkeys(SELECTED.values(), "selections"),
        },
        gauges={
            BREAKER_STATE: "",
            REGISTERED: "blueprints",
            ALLOWED: "blueprints",
            REFUSED: "blueprints",
        },
        latencies=[SELECTION_LATENCY],
    )


def tell_standings(metrics: MemberMetrics, approvals: Approvals) -> None:
    """Set the gauges of how many blueprints there are, may be grafted, and may not, by reason."""
    known = [name for name, standing in approvals.items() if standing.descriptor is not None]
    refused = [found.reason for name in known if (found := refusal(approvals, name)) is not None]
    metrics.gauge(REGISTERED, len(known))
    metrics.gauge(ALLOWED, len(known) - len(refused))
    for reason in (WITHDRAWN, QUARANTINE_ONLY, APPROVAL_REQUIRED, APPROVAL_OUTDATED):
        metrics.gauge(REFUSED, refused.count(reason), reason=reason)
