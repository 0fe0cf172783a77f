"""What the housekeeper does at intervals beside watching: it emits the fabric's metrics and lets expired records go."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Self

from esper.core.clock import Deadline
from esper.core.errors import EsperError
from esper.core.ids import new_event_id
from esper.leyline import messages as ly
from esper.oona.housekeeping._metrics import metrics_packet, queue_depths
from esper.oona.housekeeping._retention import RetentionDecision, apply_retention, plan_retention
from esper.oona.publishing._publisher import Publisher

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric

_logger = logging.getLogger("esper.oona.housekeeping")

#: Names of the topics that projections are rebuilt from.
RebuiltFrom = Callable[[], Collection[str]]


def no_projections() -> Collection[str]:
    """Return that no projection is made from anything."""
    return ()


class Reports:
    """A thread that emits a `TelemetryPacket` every `settings.metrics_seconds` and retains every `retention_seconds`.

    What fails is logged and tried again at the next turn: none of it is worth ending the member that watches the
    log. Leaving the block ends the thread.
    """

    def __init__(self, fabric: Fabric, publisher: Publisher, *, rebuilt_from: RebuiltFrom = no_projections) -> None:
        self._fabric = fabric
        self._publisher = publisher
        self._rebuilt_from = rebuilt_from
        self._retained: list[RetentionDecision] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping-reports", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def emit(self) -> None:
        """Submit one packet with the metrics of this process and the lag of every group.

        Raises:
            EsperError: the cluster or the publisher refused.
        """
        depths = queue_depths(self._fabric.cluster, self._fabric.topics)
        metrics = self._fabric.metrics()
        events = tuple(_held(decision) for decision in self._retained if decision.reason)
        packet = metrics_packet(
            metrics, depths, source=self._publisher.source, member=self._fabric.member, events=events
        )
        self._publisher.submit(packet, key=self._publisher.source)

    def retain(self) -> list[RetentionDecision]:
        """Delete what expired and nobody needs; return the decisions.

        Raises:
            EsperError: the cluster refused.
        """
        self._retained = plan_retention(self._fabric, rebuilt_from=self._rebuilt_from())
        apply_retention(self._fabric, self._retained)
        return self._retained

    def _run(self) -> None:
        settings = self._fabric.settings
        emission, retention = Deadline(settings.metrics_seconds), Deadline(settings.retention_seconds)
        while not self._stop.wait(max(0.01, min(emission.remaining_seconds, retention.remaining_seconds))):
            if retention.expired:
                self._try(self.retain, "expired records were not deleted")
                retention = Deadline(settings.retention_seconds)
            if emission.expired:
                self._try(self.emit, "the metrics were not emitted")
                emission = Deadline(settings.metrics_seconds)

    def _try(self, work: Callable[[], object], failure: str) -> None:
        try:
            work()
        except EsperError as error:
            _logger.warning("%s: %s", failure, error)


def _held(decision: RetentionDecision) -> ly.TelemetryEvent:
    return ly.TelemetryEvent(
        event_id=new_event_id(),
        description=decision.reason,
        level=ly.TELEMETRY_LEVEL_WARNING,
        attributes={"topic": decision.place[0], "held_records": str(decision.held_records)},
    )
