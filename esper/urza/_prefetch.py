"""Urza as a member: every request for a kernel gets one reply, and the forge is asked for what is not there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final, cast

from google.protobuf.message import Message

from esper.core import approvals
from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import IntegrityError
from esper.core.kernel import BlobMissing, BlobStore, DirectoryBlobStore, RefusalTeller
from esper.leyline import BadRecord, EventMessage
from esper.leyline import messages as ly
from esper.oona import BlueprintBoard, Event, Fabric, is_stale
from esper.urza import _metrics as names
from esper.urza._cache import ArtifactCache
from esper.urza._catalog import KernelEntry
from esper.urza._library import StoreSpared, UrzaLibrary, publish_refusals
from esper.urza._maintenance import UrzaMaintenance
from esper.urza._requests import (
    SOURCE,
    Answers,
    PrefetchState,
    Waiting,
    compile_id,
    decide,
    refuse_all,
    reply_id,
    request_id_of,
)

_logger = logging.getLogger("esper.urza")

GROUP: Final = "esper.urza"
_TOPICS: Final = ("kernel-requests", "kernel-catalog", "kernel-replies")
_HANDLED: Final = (ly.KernelPrefetchRequest, ly.KernelCatalogUpdate, ly.CompileFinished, ly.CompileFailed)


class UrzaPrefetchWorker:
    """Member of the group `esper.urza`, which wakes it; what it knows it reads from the log itself.

    A request for a kernel whose bytes are all there and right is answered at once; otherwise the forge is
    asked, once per kernel, and the requests wait for what becomes of it. Who waits is a fold of the log, so a
    restart forgets nobody and answers nobody twice. A blueprint that was withdrawn is refused. Beside it, what the
    catalogue lists and the store lacks is noticed (`UrzaMaintenance`), and metrics are emitted.
    """

    def __init__(self, fabric: Fabric, *, store: BlobStore, instance: str, clock: Clock = SYSTEM_CLOCK) -> None:
        settings = fabric.settings
        self._fabric = fabric
        self._instance = instance
        self._clock = clock
        self._state = PrefetchState()
        self._publisher = fabric.publisher(SOURCE)
        self._metrics = names.worker_metrics(SOURCE, member=instance)
        self._board = BlueprintBoard(fabric)
        self._maintenance = UrzaMaintenance(fabric, store=store)
        self._library = UrzaLibrary(
            store,
            metrics=self._metrics,
            teller=RefusalTeller(publish_refusals(self._publisher)),
            cache=ArtifactCache(seconds=settings.kernel_cache_seconds, clock=clock),
            slow_seconds=settings.kernel_slow_seconds,
            clock=clock,
        )
        self._log = fabric.reader(
            {(topic, partition): "begin" for topic in _TOPICS for partition in range(fabric.topics[topic].partitions)}
        )

    def run(self, stop: threading.Event) -> None:
        """Answer requests until `stop` is set; everything appended is acknowledged when it returns.

        Raises:
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
        """
        # The first request does not wait for the tenth of a second that this takes.
        import numpy as np  # noqa: F401 - what checks an artifact reads its weights with it

        consumer = self._fabric.consumer(
            group=GROUP,
            instance=self._instance,
            topics=_TOPICS,
            handlers=dict.fromkeys(_HANDLED, self._handle),
            publisher=self._publisher,
            on_assign=self._assigned,
        )
        try:
            with ExitStack() as stack:
                stack.enter_context(self._metrics.emitted(self._fabric))
                stack.enter_context(self._maintenance.every(self._fabric.settings.kernel_maintenance_seconds))
                consumer.run(stop)
        finally:
            self._board.close()
            self._log.close()
            self._publisher.close()

    def _assigned(self, _places: Sequence[tuple[str, int]]) -> None:
        self._catch_up()
        for name in list(self._state.waiting):
            self._settle(name)

    def _handle(self, event: Event) -> None:
        self._catch_up()
        self._settle(event.meta.subject)
        if isinstance(event.message, ly.KernelPrefetchRequest):
            self._check(event, event.message)

    def _check(self, event: Event, request: ly.KernelPrefetchRequest) -> None:
        """Have a request set aside that nobody is to act on; by the log alone, so at every reading alike.

        Raises:
            BadRecord: its request id was used before, or it is stale.
        """
        first = self._state.replays(request, event.offset)
        if first is not None:
            detail = f"request {request_id_of(request)} stands at offset {first} already"
            raise BadRecord(ly.DEAD_LETTER_REASON_REPLAYED, detail)
        if self._is_stale(event):
            raise BadRecord(ly.DEAD_LETTER_REASON_STALE, f"request {request_id_of(request)} came too late")

    def _catch_up(self) -> None:
        for event in self._log.read_to_end():
            self._state.fold(event.message, event.offset, stale=self._is_stale(event))

    def _is_stale(self, event: Event) -> bool:
        return is_stale(event, window_seconds=self._fabric.settings.kernel_window_seconds)

    def _settle(self, name: str) -> None:
        """Append what the requests for one kernel are due; called again it appends nothing more."""
        requests = self._state.of(name)
        if not requests:
            return
        self._library.maintain()
        entry = self._state.catalogue.get(name, KernelEntry())
        answers = self._answers(name, entry, requests)
        for request in answers.ready:
            self._append(_ready(request, entry), request, reply_id(request.request_id))
            self._count(request, names.PREFETCH_HITS)
        for request, reason in answers.errors:
            self._append(_error(request, reason), request, reply_id(request.request_id))
            self._count(request, names.PREFETCH_ERRORS)
        if answers.compile_for is not None:
            wanted = ly.CompileRequested(kernel_id=name, request=answers.compile_for.message.request)
            self._append(wanted, answers.compile_for, compile_id(name, entry))
            self._metrics.count(names.PREFETCH_MISSES)

    def _answers(self, name: str, entry: KernelEntry, requests: Sequence[Waiting]) -> Answers:
        """Return what is to be appended for the requests of one kernel, after a look at its bytes."""
        blueprint_id = requests[0].message.request.blueprint_id
        refused = approvals.refusal(self._board.read(), blueprint_id, quarantine=True)
        # Karn may not have registered yet what a request names; whether it exists the forge knows.
        if refused is not None and refused.reason != approvals.UNREGISTERED:
            return refuse_all(requests, str(refused))
        try:
            problem = self._problem(name, entry)
        except StoreSpared as error:
            return refuse_all(requests, f"store_spared: {error}")
        return decide(entry, requests, self._state.asked.get(name), problem=problem)

    def _problem(self, name: str, entry: KernelEntry) -> str:
        """Return why the catalogued artifact cannot be handed out; "" if it can, or if there is none."""
        if not entry.artifact_ref:
            return ""
        try:
            self._library.open(entry.artifact_ref, name, entry=entry, fresh=True)
        except (BlobMissing, IntegrityError) as error:
            _logger.warning("kernel %s cannot be handed out: %s", name, error)
            return str(error)
        return ""

    def _count(self, request: Waiting, counter: str) -> None:
        self._metrics.count(counter)
        asked_ns = request.message.meta.time.ToNanoseconds()
        self._metrics.observe(names.PREFETCH_LATENCY, max(0.0, (self._clock.now_ns() - asked_ns) / 1e9))

    def _append(self, message: EventMessage, request: Waiting, event_id: str) -> None:
        meta = request.message.meta
        receipt = self._publisher.publish(
            message,
            key=meta.subject,
            causation_id=meta.event_id,
            correlation_id=meta.correlation_id,
            event_id=event_id,
        )
        # Folded here too: the next decision may come before the event has been read back.
        self._state.fold(cast("Message", message), receipt.offset)


def build_service(fabric: Fabric, *, instance: str = "urza-0", store: BlobStore | None = None) -> UrzaPrefetchWorker:
    """Return the member that answers requests for kernels from the home's blob store.

    `instance` is the stable name of this member in its group.
    """
    return UrzaPrefetchWorker(fabric, store=store or DirectoryBlobStore(fabric.home.blobs), instance=instance)


def _ready(request: Waiting, entry: KernelEntry) -> ly.KernelArtifactReady:
    return ly.KernelArtifactReady(
        request_id=request.request_id,
        blueprint_id=request.message.blueprint_id,
        artifact_ref=entry.artifact_ref,
        checksum=entry.checksum,
        guard_digest=entry.guard_digest,
        kernel_id=request.message.meta.subject,
        training_run_id=request.message.training_run_id,
        prewarm=entry.prewarm,
    )


def _error(request: Waiting, reason: str) -> ly.KernelArtifactError:
    return ly.KernelArtifactError(
        request_id=request.request_id,
        blueprint_id=request.message.blueprint_id,
        reason=reason,
        kernel_id=request.message.meta.subject,
        training_run_id=request.message.training_run_id,
    )
