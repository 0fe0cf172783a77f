"""Kernels for whoever grafts: found in the catalogue, fetched by digest, verified, built."""

from __future__ import annotations

import logging
import threading
from typing import Final, Literal

from esper.core import approvals
from esper.core.approvals import Approvals
from esper.core.clock import SYSTEM_CLOCK, Clock, Deadline
from esper.core.errors import EsperError, IntegrityError
from esper.core.kernel import SPEC, ArtifactRefused, BlobMissing, BlobStore, RefusalTeller, refused_as
from esper.core.ports import FetchedKernel
from esper.leyline import messages as ly
from esper.oona import Event, Fabric, MemberMetrics, Publisher
from esper.urza._asked import KernelRequests, artifact_of, name_of, unavailable
from esper.urza._cache import ArtifactCache, OpenedArtifact
from esper.urza._catalog import KernelEntry, fold_catalogue
from esper.urza._library import StoreSpared, UrzaLibrary, publish_refusals
from esper.urza._metrics import library_metrics
from esper.urza._parts import CompiledParts

_logger = logging.getLogger("esper.urza")

_CATALOG: Final = "kernel-catalog"
_REPLIES: Final = "kernel-replies"
_BLUEPRINTS: Final = "blueprints"
_POLL_SECONDS: Final = 0.1
#: How long one look of a prefetch may hold up a fetch.
_LOOK_SECONDS: Final = 0.2


class UrzaRuntime:
    """Implements `esper.core.ports.PrefetchingRuntime` over the log and a blob store; callers take turns.

    The catalogue is folded in memory, so a kernel that is there costs no round trip. With a publisher (of
    source "kasmina") a kernel that is not there is asked for; without one it is unavailable. What people said of
    blueprints is folded too: what may not be grafted comes without a module. Stored bytes that are found wrong are
    an event, told once (`KernelIntegrityFailed`).

    With `compiled`, `fetch_kernel` gives a kernel the compiled part that this home's forge chose for this platform,
    if there is one. Its numbers may differ from eager ones in the last bits, so recorded runs go without.
    """

    def __init__(
        self,
        fabric: Fabric,
        *,
        store: BlobStore,
        publisher: Publisher | None = None,
        cache: ArtifactCache[OpenedArtifact] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        compiled: bool = False,
    ) -> None:
        settings = fabric.settings
        self._publisher = publisher
        self._clock = clock
        self._metrics = library_metrics(publisher.source if publisher else "kasmina")
        self._metrics_seconds = settings.metrics_seconds
        self._emitted_at = clock.monotonic()
        self._library = UrzaLibrary(
            store,
            metrics=self._metrics,
            teller=RefusalTeller(publish_refusals(publisher)),
            cache=cache or ArtifactCache(seconds=settings.kernel_cache_seconds, clock=clock),
            slow_seconds=settings.kernel_slow_seconds,
            clock=clock,
        )
        on_refusal = self._library.refuse
        self._parts = CompiledParts(store, home_id=fabric.home.home_id, on_refusal=on_refusal) if compiled else None
        self._approvals: Approvals = {}
        self._catalogue: dict[str, KernelEntry] = {}
        starts: dict[str, Literal["begin", "end"]] = {_CATALOG: "begin", _BLUEPRINTS: "begin", _REPLIES: "end"}
        self._log = fabric.reader(
            {
                (topic, partition): start
                for topic, start in starts.items()
                for partition in range(fabric.topics[topic].partitions)
            },
            rejects=publisher,
        )
        self._asked = KernelRequests(publisher, self._log, window_seconds=settings.kernel_window_seconds, clock=clock)
        #: Whoever trains and whoever prefetches take turns.
        self._turn = threading.RLock()

    @property
    def metrics(self) -> MemberMetrics:
        """What was counted of fetches: `urza.library.*`; emitted by fetches where there is a publisher."""
        return self._metrics

    def fetch_kernel(self, request: ly.KernelRequestSpec, *, run_id: str, wait_seconds: float) -> FetchedKernel:
        """Return the kernel for `request`, with parameters of its own, asking for it when it is not there.

        Takes about `wait_seconds` at most. `latency_ms` is the whole call's. The log's word on the blueprint comes
        with it: what may not be grafted has a `refusal` and no module, and its `artifact` only where it may run in
        quarantine. A blueprint that nobody registered has no descriptor; whoever grafts judges it.

        Raises:
            KernelUnavailable: reason "timeout", "not_in_catalogue" (and nobody to ask), "store_spared" (it is slow),
                the first word of the reason that Urza or the forge gave, or "artifact_unusable".
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
        """
        began = self._clock.monotonic()
        deadline = Deadline(wait_seconds, clock=self._clock)
        name = name_of(request)
        with self._turn:
            self._read_catalogue(deadline, request)
            try:
                kernel = self._catalogued(name, began)
                if kernel is not None:
                    return kernel
                return self._delivered(request, name, self._await_reply(request, name, run_id, deadline), began)
            except StoreSpared as error:
                raise unavailable(request.blueprint_id, "store_spared", str(error)) from error
            finally:
                self._emit()

    def prefetch(self, request: ly.KernelRequestSpec, *, run_id: str) -> FetchedKernel | None:
        """Bring the kernel for `request` near: return it as `fetch_kernel` would, or None while it is being made.

        The first call asks for a kernel that is not there, the next ones look for the reply; a fetch meanwhile waits
        for that same reply. Any thread may call it. What a caller does not come back for stays asked for.

        Raises:
            KernelUnavailable: as `fetch_kernel`, but never "timeout".
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
        """
        began = self._clock.monotonic()
        name = name_of(request)
        with self._turn:
            if not self._catch_up(Deadline(_LOOK_SECONDS, clock=self._clock)):
                return None
            try:
                return self._looked(request, name, run_id, began)
            except StoreSpared as error:
                raise unavailable(request.blueprint_id, "store_spared", str(error)) from error

    def _looked(self, request: ly.KernelRequestSpec, name: str, run_id: str, began: float) -> FetchedKernel | None:
        if not self._asked.is_open(name):
            kernel = self._catalogued(name, began)
            if kernel is None:
                self._asked.ask(request, name, run_id)
            return kernel
        reply = self._asked.taken(name)
        return None if reply is None else self._delivered(request, name, artifact_of(request, reply), began)

    def _catalogued(self, name: str, began: float) -> FetchedKernel | None:
        """Return the kernel that the catalogue lists; None where there is none, or none that can be used."""
        entry = self._catalogue.get(name, KernelEntry())
        if not entry.artifact_ref:
            return None
        try:
            return self._judged(self._library.open(entry.artifact_ref, name, entry=entry), entry.artifact_ref, began)
        except (BlobMissing, ArtifactRefused) as error:
            _logger.warning("kernel %s cannot be used, asking for it again: %s", name, error)
            return None

    def _delivered(self, request: ly.KernelRequestSpec, name: str, artifact_ref: str, began: float) -> FetchedKernel:
        """Return the kernel that a reply named."""
        try:
            return self._judged(self._library.open(artifact_ref, name, fresh=True), artifact_ref, began)
        except (BlobMissing, IntegrityError) as error:
            raise unavailable(request.blueprint_id, "artifact_unusable", str(error)) from error

    def fetch_by_digest(self, artifact_ref: str) -> FetchedKernel:
        """Return the very kernel of this digest, with parameters of its own; asks nobody, whatever was said since.

        Raises:
            KernelUnavailable: reason "artifact_missing": the store lacks a part of it; "store_spared": it is slow.
            IntegrityError: what is stored under the digest is something else.
        """
        began = self._clock.monotonic()
        with self._turn:
            try:
                return self._built(self._library.open(artifact_ref, None), artifact_ref, began)
            except BlobMissing as error:
                raise unavailable(artifact_ref, "artifact_missing", str(error)) from error
            except StoreSpared as error:
                raise unavailable(artifact_ref, "store_spared", str(error)) from error

    def close_epoch(self, _epoch: int) -> int:
        """Drop opened artifacts that have expired; return how many. They can be opened again."""
        with self._turn:
            return self._library.maintain()

    def clear(self) -> int:
        """Drop every opened artifact, for memory's sake; return how many bytes that were."""
        with self._turn:
            return self._library.release()

    def close(self) -> None:
        """Release the connection to the log."""
        with self._turn:
            self._emit(last=True)
            self._log.close()

    def _read_catalogue(self, deadline: Deadline, request: ly.KernelRequestSpec) -> None:
        """Fold what the log holds by now; the first time that is the whole catalogue."""
        if not self._catch_up(deadline):
            raise unavailable(request.blueprint_id, "timeout", "the kernel catalogue could not be read in time")

    def _catch_up(self, deadline: Deadline) -> bool:
        """Fold what the log holds by now; return whether that was done by the deadline."""
        while True:  # ends at the end of the log or at the deadline
            events = self._log.read(0.0 if self._log.at_end() else _POLL_SECONDS)
            for event in events:
                self._fold(event)
            if self._log.at_end() and not events:
                return True
            if deadline.expired:
                return False

    def _fold(self, event: Event) -> None:
        message = event.message
        if isinstance(message, ly.KernelArtifactReady | ly.KernelArtifactError):
            self._asked.fold(event, message)
        elif event.topic == _BLUEPRINTS:
            self._approvals = approvals.fold(self._approvals, message)
        else:
            fold_catalogue(self._catalogue, message)
            if self._parts is not None:
                self._parts.fold(message)

    def _await_reply(self, request: ly.KernelRequestSpec, name: str, run_id: str, deadline: Deadline) -> str:
        """Return the digest that Urza names once the kernel is there, asking for it unless it is asked for already."""
        self._asked.ask(request, name, run_id)
        try:
            while (reply := self._asked.reply(name)) is None:
                if deadline.expired:
                    raise unavailable(request.blueprint_id, "timeout", f"no reply about kernel {name} in time")
                for event in self._log.read(min(_POLL_SECONDS, deadline.remaining_seconds)):
                    self._fold(event)
            return artifact_of(request, reply)
        finally:
            self._asked.forget(name)

    def _judged(self, opened: OpenedArtifact, artifact_ref: str, began: float) -> FetchedKernel:
        """Return the kernel as far as the log's word on its blueprint lets anybody have it."""
        blueprint_id = opened.manifest.request.blueprint_id
        standing = self._approvals.get(blueprint_id)
        if standing is None or standing.descriptor is None:
            return self._built(opened, artifact_ref, began, parts=self._parts)
        refusal = approvals.refusal(self._approvals, blueprint_id)
        if refusal is None:
            return self._built(opened, artifact_ref, began, standing.descriptor, parts=self._parts)
        return FetchedKernel(
            module=None,
            artifact_ref=artifact_ref,
            manifest=opened.manifest,
            latency_ms=self._milliseconds(began),
            artifact=opened if refusal.quarantine else None,
            refusal=refusal.reason,
            descriptor=standing.descriptor,
        )

    def _built(
        self,
        opened: OpenedArtifact,
        artifact_ref: str,
        began: float,
        descriptor: ly.BlueprintDescriptor | None = None,
        *,
        parts: CompiledParts | None = None,
    ) -> FetchedKernel:
        """Return the kernel with a fresh module."""
        # torch comes with the first kernel, so that whoever only looks starts without it.
        from esper.core.kernel import load_verified

        try:
            with refused_as(SPEC):
                module = load_verified(opened.verified)
        except ArtifactRefused as error:
            self._library.refuse(opened.manifest.kernel_id, artifact_ref, error)
            raise
        if parts is not None:
            module = parts.opened(module, artifact_ref)
        return FetchedKernel(
            module, artifact_ref, opened.manifest, self._milliseconds(began), artifact=opened, descriptor=descriptor
        )

    def _milliseconds(self, began: float) -> float:
        return (self._clock.monotonic() - began) * 1000.0

    def _emit(self, *, last: bool = False) -> None:
        """Submit the metrics when they are due; a fetch never waits for it, nor fails of it."""
        now = self._clock.monotonic()
        if (
            self._publisher is None
            or self._publisher.closed
            or (not last and now < self._emitted_at + self._metrics_seconds)
        ):
            return
        self._emitted_at = now
        self._library.maintain()
        try:
            self._publisher.submit(self._metrics.packet(), key=self._metrics.source)
        except EsperError as error:
            _logger.warning("the metrics of the library were not emitted: %s", error)
