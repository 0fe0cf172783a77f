"""What the housekeeper does at intervals beside watching: it emits the fabric's metrics and lets expired records go."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from esper.core.ids import new_event_id
from esper.leyline import messages as ly
from esper.oona._cluster import Position
from esper.oona.housekeeping._every import Every
from esper.oona.housekeeping._metrics import metrics_packet, queue_depths
from esper.oona.housekeeping._retention import RetentionDecision, apply_retention, plan_retention
from esper.oona.publishing._publisher import Publisher

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric

#: Names of the topics that projections are rebuilt from.
RebuiltFrom = Callable[[], Collection[str]]
#: How far an archive holds partitions for certain; those that it does not seal are not named.
Archived = Callable[[], Mapping[Position, int]]


def no_projections() -> Collection[str]:
    """Return that no projection is made from anything."""
    return ()


def no_archive() -> Mapping[Position, int]:
    """Return that no archive holds anything."""
    return {}


class Reports:
    """Emits a `TelemetryPacket` every `settings.metrics_seconds` and retains every `retention_seconds`, within a block.

    Each in a thread of its own, so that a long retention delays no figures.
    """

    def __init__(
        self,
        fabric: Fabric,
        publisher: Publisher,
        *,
        rebuilt_from: RebuiltFrom = no_projections,
        archived: Archived = no_archive,
    ) -> None:
        self._fabric = fabric
        self._publisher = publisher
        self._rebuilt_from = rebuilt_from
        self._archived = archived
        self._retained: list[RetentionDecision] = []
        self._threads = ExitStack()

    def __enter__(self) -> Self:
        settings = self._fabric.settings
        emission = Every(
            settings.metrics_seconds, self.emit, name="housekeeping-emission", failure="the metrics were not emitted"
        )
        retention = Every(
            settings.retention_seconds,
            self.retain,
            name="housekeeping-retention",
            failure="expired records were not deleted",
        )
        self._threads.enter_context(emission)
        self._threads.enter_context(retention)
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.close()

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
        self._retained = plan_retention(self._fabric, rebuilt_from=self._rebuilt_from(), archived=self._archived())
        apply_retention(self._fabric, self._retained)
        return self._retained


def _held(decision: RetentionDecision) -> ly.TelemetryEvent:
    return ly.TelemetryEvent(
        event_id=new_event_id(),
        description=decision.reason,
        level=ly.TELEMETRY_LEVEL_WARNING,
        attributes={"topic": decision.place[0], "held_records": str(decision.held_records)},
    )
