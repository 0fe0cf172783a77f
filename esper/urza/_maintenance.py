"""Maintenance of the library: what the catalogue lists and the store lacks is said to be gone, once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from google.protobuf.message import Message

from esper.core.errors import EsperError
from esper.core.ids import EventId, derive_id
from esper.core.kernel import BlobStore
from esper.leyline import messages as ly
from esper.urza._requests import SOURCE

if TYPE_CHECKING:
    from esper.oona import Fabric

_logger = logging.getLogger("esper.urza")

_TOPICS: Final = ("kernel-catalog", "kernel-store")
#: Begins the reason of an eviction that nobody ordered: the bytes were found gone.
MISSING: Final = "missing"


@dataclass(frozen=True)
class Listed:
    """What the log says of one kernel's bytes: its artifact, the digests of its parts, how often it was catalogued."""

    artifact_ref: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)
    updates: int = 0


@dataclass
class StoreFacts:
    """A fold of kernel-catalog and of kernel-store, each on its own."""

    listed: dict[str, Listed] = field(default_factory=dict)
    #: Ids of the evictions that the log holds.
    evictions: set[str] = field(default_factory=set)

    def fold(self, message: Message) -> None:
        """Take one more event into the facts; of other events nothing is kept."""
        if isinstance(message, ly.KernelCatalogUpdate):
            name = message.meta.subject
            parts = {
                "manifest": message.artifact_ref,
                "spec": message.manifest.spec_digest,
                "weights": message.manifest.weights_digest,
            }
            updates = self.listed.get(name, Listed()).updates + 1
            self.listed[name] = Listed(message.artifact_ref, parts, updates)
        elif isinstance(message, ly.KernelEvicted):
            self.evictions.add(message.meta.event_id)


def eviction_id(name: str, listed: Listed) -> EventId:
    """Return the id of the one event that says that a kernel's bytes were found gone."""
    return derive_id(SOURCE, "evicted", name, listed.artifact_ref, listed.updates)


def removal_id(name: str, listed: Listed) -> EventId:
    """Return the id of the one event that says that a kernel's bytes were removed, and are not to be missed."""
    return derive_id(SOURCE, "removed", name, listed.artifact_ref, listed.updates)


def decide(facts: StoreFacts, absent: Mapping[str, str]) -> list[tuple[EventId, ly.KernelEvicted]]:
    """Return what is still to be said: `absent` maps kernels to the part of their artifact that the store lacks.

    The id counts how often a kernel was catalogued: one that was made again and is gone again is news.
    """
    due = []
    for name, part in sorted(absent.items()):
        listed = facts.listed[name]
        event_id = eviction_id(name, listed)
        if facts.evictions.isdisjoint((event_id, removal_id(name, listed))):
            reason = f"{MISSING}: the store lacks its {part}"
            due.append((event_id, ly.KernelEvicted(kernel_id=name, artifact_ref=listed.artifact_ref, reason=reason)))
    return due


class UrzaMaintenance:
    """Looks whether the store still holds what the catalogue lists; one thread at a time."""

    def __init__(self, fabric: Fabric, *, store: BlobStore) -> None:
        self._fabric = fabric
        self._store = store

    def once(self) -> list[ly.KernelEvicted]:
        """Append a `KernelEvicted` for every kernel whose bytes are gone and of which that was not said; return them.

        Raises:
            NotReadyError, BrokerUnavailable: the log could not be read or written.
        """
        # A reader of each turn's own: in between nobody polls, and the log of kernels is short.
        places = [(topic, part) for topic in _TOPICS for part in range(self._fabric.topics[topic].partitions)]
        facts = StoreFacts()
        with self._fabric.reader(dict.fromkeys(places, "begin")) as reader:
            for event in reader.read_to_end():
                facts.fold(event.message)
        due = decide(facts, self._absent(facts))
        if due:
            with self._fabric.publisher(SOURCE) as publisher:
                for event_id, evicted in due:
                    _logger.warning("kernel %s: %s", evicted.kernel_id, evicted.reason)
                    publisher.publish(evicted, key=evicted.kernel_id, event_id=event_id)
        return [evicted for _, evicted in due]

    @contextmanager
    def every(self, seconds: float) -> Iterator[None]:
        """Look every `seconds` while the block runs, first after as long; what fails is logged and tried again."""
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(seconds):
                try:
                    self.once()
                except EsperError as error:
                    _logger.warning("the library could not be maintained: %s", error)

        thread = threading.Thread(target=work, name="urza-maintenance", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _absent(self, facts: StoreFacts) -> dict[str, str]:
        found = {}
        for name, listed in facts.listed.items():
            lacking = [part for part, digest in listed.parts.items() if not self._store.has(digest)]
            if lacking:
                found[name] = lacking[0]
        return found
