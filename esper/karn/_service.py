"""Karn as a member: it tells the log once what may be grafted, and again only when that has changed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from esper.core.ids import Digest, EventId, derive_id
from esper.karn._blueprint import descriptor_digest
from esper.karn._catalog import KarnCatalog
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.oona import Fabric, Publisher

_logger = logging.getLogger("esper.karn")

SOURCE: Final = "karn"
GROUP: Final = "esper.karn"
_TOPIC: Final = "blueprints"


@dataclass(frozen=True)
class Registration:
    """What the log says of one blueprint: the digest it was last registered with, and how often it was."""

    digest: str = ""
    count: int = 0


Registrations = Mapping[str, Registration]


def fold(registrations: Registrations, event: ly.BlueprintRegistered) -> Registrations:
    """Return the registrations after `event`."""
    name = event.descriptor.blueprint_id
    count = registrations.get(name, Registration()).count
    return {**registrations, name: Registration(event.descriptor_digest, count + 1)}


def decide(
    registrations: Registrations, descriptors: Iterable[ly.BlueprintDescriptor]
) -> list[tuple[EventId, ly.BlueprintRegistered]]:
    """Return what is still to be registered, each with the id that this registration always has."""
    due = []
    for descriptor in descriptors:
        digest = descriptor_digest(descriptor)
        known = registrations.get(descriptor.blueprint_id, Registration())
        if known.digest != digest:
            event = ly.BlueprintRegistered(descriptor=descriptor, descriptor_digest=digest)
            due.append((_event_id(descriptor.blueprint_id, known.count, digest), event))
    return due


class KarnService:
    """Registers the catalogue's blueprints at start, then watches its topic and sets aside what is not Karn's."""

    def __init__(self, fabric: Fabric, catalog: KarnCatalog, *, instance: str) -> None:
        self._fabric = fabric
        self._catalog = catalog
        self._instance = instance

    def run(self, stop: threading.Event) -> None:
        """Register what the log does not hold yet, then idle until `stop` is set.

        Raises:
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
        """
        with self._fabric.publisher(SOURCE) as publisher:
            events = self.register(publisher)
            _logger.info("%d of %d blueprints were news", len(events), len(self._catalog.list()))
            consumer = self._fabric.consumer(
                group=GROUP, instance=self._instance, topics=[_TOPIC], handlers={}, publisher=publisher
            )
            consumer.run(stop)

    def register(self, publisher: Publisher) -> list[EventMessage]:
        """Append a registration for every blueprint that the log does not hold as it is now; return them."""
        due = decide(self._registrations(), [blueprint.descriptor() for blueprint in self._catalog.list()])
        for event_id, event in due:
            publisher.publish(event, key=event.descriptor.blueprint_id, event_id=event_id)
        return [event for _, event in due]

    def _registrations(self) -> Registrations:
        """Read Karn's own output to its end, so that a restart says nothing twice."""
        partitions = range(self._fabric.topics[_TOPIC].partitions)
        found: Registrations = {}
        with self._fabric.reader({(_TOPIC, partition): "begin" for partition in partitions}) as reader:
            for event in reader.read_to_end():
                if isinstance(event.message, ly.BlueprintRegistered):
                    found = fold(found, event.message)
        return found


def build_service(fabric: Fabric, *, catalog: KarnCatalog | None = None, instance: str = "karn-0") -> KarnService:
    """Return the member that registers `catalog`, by default everything that Karn offers.

    `instance` is the stable name of this member in its group.
    """
    return KarnService(fabric, catalog or KarnCatalog(), instance=instance)


def _event_id(blueprint_id: str, count: int, digest: Digest) -> EventId:
    # The count keeps a blueprint that goes back to an older form from taking that form's id.
    return derive_id(SOURCE, "registered", blueprint_id, count, digest)
