"""Kernels for whoever grafts: found in the catalogue, fetched by digest, verified, built."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Literal

from esper.core import approvals
from esper.core.approvals import Approvals
from esper.core.clock import SYSTEM_CLOCK, Clock, Deadline
from esper.core.errors import EsperError, IntegrityError, UsageError
from esper.core.ids import new_event_id
from esper.core.kernel import SPEC, ArtifactRefused, BlobMissing, BlobStore, RefusalTeller, kernel_id, refused_as
from esper.core.ports import FetchedKernel, KernelUnavailable
from esper.leyline import messages as ly
from esper.oona import Event, Fabric, MemberMetrics, Publisher, is_stale
from esper.urza._cache import ArtifactCache, OpenedArtifact
from esper.urza._catalog import KernelEntry, fold_catalogue
from esper.urza._library import StoreSpared, UrzaLibrary
from esper.urza._metrics import library_metrics
from esper.urza._parts import CompiledParts

_logger = logging.getLogger("esper.urza")

_CATALOG: Final = "kernel-catalog"
_REPLIES: Final = "kernel-replies"
_BLUEPRINTS: Final = "blueprints"
_POLL_SECONDS: Final = 0.1

_Reply = ly.KernelArtifactReady | ly.KernelArtifactError


class UrzaRuntime:
    """Implements `esper.core.ports.BlueprintRuntime` over the log and a blob store; one thread at a time.

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
        self._pending: dict[str, _Reply | None] = {}
        starts: dict[str, Literal["begin", "end"]] = {_CATALOG: "begin", _BLUEPRINTS: "begin", _REPLIES: "end"}
        self._log = fabric.reader(
            {
                (topic, partition): start
                for topic, start in starts.items()
                for partition in range(fabric.topics[topic].partitions)
            },
            rejects=publisher,
        )
        self._window_seconds = settings.kernel_window_seconds

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
        try:
            name = kernel_id(request)
        except UsageError as error:
            raise _unavailable(request.blueprint_id, "usage_error", str(error)) from error
        self._read_catalogue(deadline, request)
        try:
            return self._fetch(request, name, run_id, deadline, began)
        except StoreSpared as error:
            raise _unavailable(request.blueprint_id, "store_spared", str(error)) from error
        finally:
            self._emit()

    def _fetch(
        self, request: ly.KernelRequestSpec, name: str, run_id: str, deadline: Deadline, began: float
    ) -> FetchedKernel:
        entry = self._catalogue.get(name, KernelEntry())
        if entry.artifact_ref:
            try:
                return self._judged(
                    self._library.open(entry.artifact_ref, name, entry=entry), entry.artifact_ref, began
                )
            except (BlobMissing, ArtifactRefused) as error:
                _logger.warning("kernel %s cannot be used, asking for it again: %s", name, error)
        artifact_ref = self._ask(request, name, run_id, deadline)
        try:
            return self._judged(self._library.open(artifact_ref, name, fresh=True), artifact_ref, began)
        except (BlobMissing, IntegrityError) as error:
            raise _unavailable(request.blueprint_id, "artifact_unusable", str(error)) from error

    def fetch_by_digest(self, artifact_ref: str) -> FetchedKernel:
        """Return the very kernel of this digest, with parameters of its own; asks nobody, whatever was said since.

        Raises:
            KernelUnavailable: reason "artifact_missing": the store lacks a part of it; "store_spared": it is slow.
            IntegrityError: what is stored under the digest is something else.
        """
        began = self._clock.monotonic()
        try:
            return self._built(self._library.open(artifact_ref, None), artifact_ref, began)
        except BlobMissing as error:
            raise _unavailable(artifact_ref, "artifact_missing", str(error)) from error
        except StoreSpared as error:
            raise _unavailable(artifact_ref, "store_spared", str(error)) from error

    def close(self) -> None:
        """Release the connection to the log."""
        self._emit(last=True)
        self._log.close()

    def _read_catalogue(self, deadline: Deadline, request: ly.KernelRequestSpec) -> None:
        """Fold what the log holds by now; the first time that is the whole catalogue."""
        while True:  # ends at the end of the log or at the deadline
            events = self._log.read(0.0 if self._log.at_end() else _POLL_SECONDS)
            for event in events:
                self._fold(event)
            if self._log.at_end() and not events:
                return
            if deadline.expired:
                raise _unavailable(request.blueprint_id, "timeout", "the kernel catalogue could not be read in time")

    def _fold(self, event: Event) -> None:
        message = event.message
        if isinstance(message, ly.KernelArtifactReady | ly.KernelArtifactError):
            if message.request_id in self._pending:
                self._take_reply(event, message)
        elif event.topic == _BLUEPRINTS:
            self._approvals = approvals.fold(self._approvals, message)
        else:
            fold_catalogue(self._catalogue, message)
            if self._parts is not None:
                self._parts.fold(message)

    def _take_reply(self, event: Event, reply: _Reply) -> None:
        """Keep the reply to a pending request: the first that is its effect and was not sat on."""
        if is_stale(event, window_seconds=self._window_seconds):
            detail = f"the reply to request {reply.request_id} came too late"
            self._log.set_aside(event, reason=ly.DEAD_LETTER_REASON_STALE, detail=detail)
        elif self._pending[reply.request_id] is not None:
            detail = f"request {reply.request_id} has its reply already"
            self._log.set_aside(event, reason=ly.DEAD_LETTER_REASON_REPLAYED, detail=detail)
        elif event.meta.causation_id == reply.request_id:
            self._pending[reply.request_id] = reply

    def _ask(self, request: ly.KernelRequestSpec, name: str, run_id: str, deadline: Deadline) -> str:
        """Ask for the kernel and return the digest of its artifact once Urza says that it is there."""
        if self._publisher is None:
            raise _unavailable(request.blueprint_id, "not_in_catalogue", f"nobody made kernel {name} yet")
        request_id = new_event_id()
        wanted = ly.KernelPrefetchRequest(
            request_id=request_id,
            blueprint_id=request.blueprint_id,
            training_run_id=run_id,
            kernel_id=name,
            request=request,
        )
        wanted.issued_at.FromNanoseconds(self._clock.now_ns())
        self._pending[request_id] = None
        try:
            self._publisher.publish(wanted, key=name, correlation_id=run_id, event_id=request_id)
            reply = self._await_reply(request_id, deadline)
        finally:
            del self._pending[request_id]
        if reply is None:
            raise _unavailable(request.blueprint_id, "timeout", f"no reply to request {request_id} in time")
        if isinstance(reply, ly.KernelArtifactError):
            word, _, detail = reply.reason.partition(": ")
            raise _unavailable(request.blueprint_id, word, detail)
        return reply.artifact_ref

    def _await_reply(self, request_id: str, deadline: Deadline) -> _Reply | None:
        while self._pending[request_id] is None and not deadline.expired:
            for event in self._log.read(min(_POLL_SECONDS, deadline.remaining_seconds)):
                self._fold(event)
        return self._pending[request_id]

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


def publish_refusals(publisher: Publisher | None) -> Callable[[ly.KernelIntegrityFailed, str], object] | None:
    """Return what appends a refusal to kernel-store as this publisher; None without one."""
    return None if publisher is None else lambda event, key: publisher.publish(event, key=key)


def _unavailable(subject: str, reason: str, cause: str) -> KernelUnavailable:
    return KernelUnavailable(
        f"no kernel for {subject!r}",
        reason=reason,
        cause=f"{reason}: {cause}",
        next_step="the seed contributes nothing; `esper status` shows whether urza and tezzeret run",
    )
