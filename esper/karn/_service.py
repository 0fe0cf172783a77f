"""Karn as a member: it tells the log once what may be grafted, and again only when that has changed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from functools import partial
from typing import Final

from esper.core.approvals import Approvals, Standing, descriptor_digest, refusal, registered
from esper.core.ids import Digest, EventId, derive_id
from esper.karn._catalog import KarnCatalog
from esper.karn._queries import KarnQueries
from esper.karn._telemetry import SOURCE, karn_metrics, tell_standings
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.oona import BlueprintBoard, Event, Fabric, Publisher

_logger = logging.getLogger("esper.karn")

GROUP: Final = "esper.karn"
_TOPIC: Final = "blueprints"
_HANDLED: Final = (ly.BlueprintRegistered, ly.BlueprintApproved, ly.BlueprintWithdrawn)


def decide(
    approvals: Approvals, descriptors: Iterable[ly.BlueprintDescriptor]
) -> list[tuple[EventId, ly.BlueprintRegistered]]:
    """Return what is still to be registered, each with the id that this registration always has."""
    due = []
    for descriptor in descriptors:
        digest = descriptor_digest(descriptor)
        known = approvals.get(descriptor.blueprint_id, Standing())
        if known.digest != digest:
            event = ly.BlueprintRegistered(descriptor=descriptor, descriptor_digest=digest)
            due.append((_event_id(descriptor.blueprint_id, known.registrations, digest), event))
    return due


class KarnService:
    """Registers the catalogue's blueprints at start, then follows what people allow and withdraw.

    It emits the metrics `karn.*` and says in its log what each decision changes; whoever compiles or grafts reads
    the topic itself.
    """

    def __init__(self, fabric: Fabric, catalog: KarnCatalog, *, instance: str) -> None:
        self._fabric = fabric
        self._catalog = catalog
        self._instance = instance
        self.metrics = karn_metrics(instance)
        #: Answers queries of this process by what the log says at the time; counted in `metrics`.
        self.queries = KarnQueries(catalog, self._read_approvals, metrics=self.metrics)
        self._query_board: BlueprintBoard | None = None

    def run(self, stop: threading.Event) -> None:
        """Register what the log does not hold yet, then follow the topic until `stop` is set.

        Raises:
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
        """
        with (
            self._fabric.publisher(SOURCE) as publisher,
            BlueprintBoard(self._fabric) as board,
            self.metrics.emitted(self._fabric),
        ):
            events = self.register(publisher)
            _logger.info("%d of %d blueprints were news", len(events), len(self._catalog.list()))
            tell_standings(self.metrics, board.read())
            consumer = self._fabric.consumer(
                group=GROUP,
                instance=self._instance,
                topics=[_TOPIC],
                handlers=dict.fromkeys(_HANDLED, partial(self._handle, board)),
                publisher=publisher,
            )
            consumer.run(stop)

    def register(self, publisher: Publisher) -> list[EventMessage]:
        """Append a registration for every blueprint that the log does not hold as it is now; return them."""
        with BlueprintBoard(self._fabric) as board:  # to its end, so that a restart says nothing twice
            due = decide(board.read(), [blueprint.descriptor() for blueprint in self._catalog.list()])
        for event_id, event in due:
            publisher.publish(event, key=event.descriptor.blueprint_id, event_id=event_id)
        return [event for _, event in due]

    def _read_approvals(self) -> Approvals:
        """Return what the log says; what this member is about to register counts as registered."""
        if self._query_board is None:
            self._query_board = BlueprintBoard(self._fabric)  # closed with the fabric
        descriptors = [blueprint.descriptor() for blueprint in self._catalog.list()]
        return registered(descriptors, self._query_board.read())

    def _handle(self, board: BlueprintBoard, event: Event) -> None:
        """Say what the event changes; the board has the events before it that this group committed in another life."""
        approvals = board.read()
        tell_standings(self.metrics, approvals)
        message = event.message
        if isinstance(message, ly.BlueprintApproved | ly.BlueprintWithdrawn):
            found = refusal(approvals, message.blueprint_id)
            _logger.info("blueprint %s: %s", message.blueprint_id, found or "may be grafted")


def build_service(fabric: Fabric, *, catalog: KarnCatalog | None = None, instance: str = "karn-0") -> KarnService:
    """Return the member that registers `catalog`, by default everything that Karn offers.

    `instance` is the stable name of this member in its group.
    """
    return KarnService(fabric, catalog or KarnCatalog(), instance=instance)


def _event_id(blueprint_id: str, count: int, digest: Digest) -> EventId:
    # The count keeps a blueprint that goes back to an older form from taking that form's id.
    return derive_id(SOURCE, "registered", blueprint_id, count, digest)
