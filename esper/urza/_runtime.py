"""Kernels for whoever grafts: found in the catalogue, fetched by digest, verified, built."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Final, Literal

from esper.core.clock import SYSTEM_CLOCK, Clock, Deadline
from esper.core.errors import IntegrityError, UsageError
from esper.core.ids import new_event_id
from esper.core.kernel import BlobMissing, BlobStore, KernelArtifact, check_kernel, get_artifact, kernel_id
from esper.core.ports import FetchedKernel, KernelUnavailable
from esper.leyline import messages as ly
from esper.oona import Event, Fabric, Publisher, is_stale
from esper.urza._catalog import KernelEntry, fold_catalogue

_logger = logging.getLogger("esper.urza")

_CATALOG: Final = "kernel-catalog"
_REPLIES: Final = "kernel-replies"
#: What a worker keeps of kernels it may want again; a seed has some 10 KB.
_CACHE_BYTES_MAX: Final = 64 * 1024 * 1024
_POLL_SECONDS: Final = 0.1

_Reply = ly.KernelArtifactReady | ly.KernelArtifactError


class ArtifactCache:
    """The artifacts used last, by their digest, up to a number of bytes."""

    def __init__(self, bytes_max: int = _CACHE_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._artifacts: OrderedDict[str, KernelArtifact] = OrderedDict()

    def get(self, artifact_ref: str) -> KernelArtifact | None:
        """Return the artifact and count it as used, or None."""
        artifact = self._artifacts.get(artifact_ref)
        if artifact is not None:
            self._artifacts.move_to_end(artifact_ref)
        return artifact

    def put(self, artifact_ref: str, artifact: KernelArtifact) -> None:
        """Keep the artifact; drop those that were not used for longest until all fit."""
        if artifact_ref in self._artifacts:
            return
        self._artifacts[artifact_ref] = artifact
        self._bytes += _size(artifact)
        while self._bytes > self._bytes_max:
            _, dropped = self._artifacts.popitem(last=False)
            self._bytes -= _size(dropped)

    def __len__(self) -> int:
        return len(self._artifacts)


class UrzaRuntime:
    """Implements `esper.core.ports.BlueprintRuntime` over the log and a blob store; one thread at a time.

    The catalogue is folded in memory, so a kernel that is there costs no round trip. With a publisher (of
    source "kasmina") a kernel that is not there is asked for; without one it is unavailable.
    """

    def __init__(
        self,
        fabric: Fabric,
        *,
        store: BlobStore,
        publisher: Publisher | None = None,
        cache: ArtifactCache | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._cache = cache or ArtifactCache()
        self._clock = clock
        self._catalogue: dict[str, KernelEntry] = {}
        self._pending: dict[str, _Reply | None] = {}
        starts: dict[str, Literal["begin", "end"]] = {_CATALOG: "begin", _REPLIES: "end"}
        self._log = fabric.reader(
            {
                (topic, partition): start
                for topic, start in starts.items()
                for partition in range(fabric.topics[topic].partitions)
            },
            rejects=publisher,
        )
        self._window_seconds = fabric.settings.kernel_window_seconds

    def fetch_kernel(self, request: ly.KernelRequestSpec, *, run_id: str, wait_seconds: float) -> FetchedKernel:
        """Return the kernel for `request`, with parameters of its own, asking for it when it is not there.

        Takes about `wait_seconds` at most. `latency_ms` is the whole call's.

        Raises:
            KernelUnavailable: reason "timeout", "not_in_catalogue" (and nobody to ask), the first word of the
                reason that Urza or the forge gave, or "artifact_unusable".
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
        """
        began = self._clock.monotonic()
        deadline = Deadline(wait_seconds, clock=self._clock)
        try:
            name = kernel_id(request)
        except UsageError as error:
            raise _unavailable(request.blueprint_id, "usage_error", str(error)) from error
        self._read_catalogue(deadline, request)
        known = self._catalogue.get(name, KernelEntry()).artifact_ref
        if known:
            try:
                return self._open(known, name, began)
            except (BlobMissing, IntegrityError) as error:
                _logger.warning("kernel %s cannot be used, asking for it again: %s", name, error)
        artifact_ref = self._ask(request, name, run_id, deadline)
        try:
            return self._open(artifact_ref, name, began)
        except (BlobMissing, IntegrityError) as error:
            raise _unavailable(request.blueprint_id, "artifact_unusable", str(error)) from error

    def fetch_by_digest(self, artifact_ref: str) -> FetchedKernel:
        """Return the very kernel of this digest, with parameters of its own; asks nobody.

        Raises:
            KernelUnavailable: reason "artifact_missing": the store lacks a part of it.
            IntegrityError: what is stored under the digest is something else.
        """
        try:
            return self._open(artifact_ref, None, self._clock.monotonic())
        except BlobMissing as error:
            raise _unavailable(artifact_ref, "artifact_missing", str(error)) from error

    def close(self) -> None:
        """Release the connection to the log."""
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
        else:
            fold_catalogue(self._catalogue, message)

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

    def _open(self, artifact_ref: str, name: str | None, began: float) -> FetchedKernel:
        """Return a fresh module of the artifact, which must be that of kernel `name` where one is given."""
        # torch comes with the first kernel, so that whoever only looks starts without it.
        from esper.core.kernel import load_kernel

        artifact = self._cache.get(artifact_ref) or get_artifact(self._store, artifact_ref)
        check_kernel(artifact, artifact_ref, name)
        module = load_kernel(artifact)
        self._cache.put(artifact_ref, artifact)
        latency_ms = (self._clock.monotonic() - began) * 1000.0
        return FetchedKernel(module, artifact_ref, artifact.manifest, latency_ms)


def _size(artifact: KernelArtifact) -> int:
    return len(artifact.spec) + len(artifact.weights)


def _unavailable(subject: str, reason: str, cause: str) -> KernelUnavailable:
    return KernelUnavailable(
        f"no kernel for {subject!r}",
        reason=reason,
        cause=f"{reason}: {cause}",
        next_step="the seed contributes nothing; `esper status` shows whether urza and tezzeret run",
    )
