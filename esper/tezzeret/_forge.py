"""The forge: a member that answers each request for a compilation with exactly one end."""

from __future__ import annotations

import logging
import threading
from typing import Final

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import EsperError, IntegrityError
from esper.core.kernel import (
    BlobMissing,
    BlobStore,
    DirectoryBlobStore,
    KernelArtifact,
    check_kernel,
    get_artifact,
    kernel_id,
    put_artifact,
    verify_artifact,
)
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.oona import Event, Fabric
from esper.tezzeret._compiler import BlueprintBuilder, TezzeretCompiler
from esper.tezzeret._jobs import (
    SOURCE,
    KernelFacts,
    Step,
    decide,
    ended_id,
    fold,
    reason_of,
    started_id,
    updated_id,
)

_logger = logging.getLogger("esper.tezzeret")

GROUP: Final = "esper.tezzeret"
_REQUESTS: Final = "kernel-requests"
_CATALOG: Final = "kernel-catalog"


class TezzeretForge:
    """Member of the group `esper.tezzeret` on kernel-requests.

    Jobs are a fold of kernel-catalog, read to its end before each request: after a crash the forge goes on
    where the log stops, makes nothing twice that is there and right, and ends every request once.
    """

    def __init__(
        self,
        fabric: Fabric,
        *,
        compiler: TezzeretCompiler,
        store: BlobStore,
        instance: str,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._fabric = fabric
        self._compiler = compiler
        self._store = store
        self._instance = instance
        self._clock = clock
        self._jobs: dict[str, KernelFacts] = {}
        self._publisher = fabric.publisher(SOURCE)
        partitions = range(fabric.topics[_CATALOG].partitions)
        self._own_output = fabric.reader({(_CATALOG, partition): "begin" for partition in partitions})

    def run(self, stop: threading.Event) -> None:
        """Answer requests until `stop` is set; everything appended is acknowledged when it returns.

        Raises:
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
        """
        self._compiler.warm_up()
        consumer = self._fabric.consumer(
            group=GROUP,
            instance=self._instance,
            topics=[_REQUESTS],
            handlers={ly.CompileRequested: self._handle},
            publisher=self._publisher,
        )
        try:
            consumer.run(stop)
        finally:
            self._own_output.close()
            self._publisher.close()

    def _handle(self, event: Event) -> None:
        request = event.message
        assert isinstance(request, ly.CompileRequested), "the consumer calls a handler with its own type"
        self._catch_up()
        facts = self._jobs.get(request.meta.subject, KernelFacts())
        step = decide(facts, request.meta.event_id, stored=self._is_stored(request.meta.subject, facts.artifact_ref))
        if step is Step.COMPILE:
            self._compile(request, attempt=facts.attempts + 1)
        elif step is Step.FINISH:
            self._finish(request, facts.artifact_ref, facts.compile_ms)

    def _catch_up(self) -> None:
        for event in self._own_output.read_to_end():
            name = event.meta.subject
            self._jobs[name] = fold(self._jobs.get(name, KernelFacts()), event.message)

    def _is_stored(self, name: str, artifact_ref: str) -> bool:
        if not artifact_ref:
            return False
        try:
            artifact = get_artifact(self._store, artifact_ref)
            check_kernel(artifact, artifact_ref, name)
            verify_artifact(artifact)
        except (BlobMissing, IntegrityError) as error:
            _logger.warning("kernel %s has to be compiled again: %s", name, error)
            return False
        return True

    def _compile(self, request: ly.CompileRequested, *, attempt: int) -> None:
        name, cause = request.meta.subject, request.meta.event_id
        self._append(ly.CompileStarted(kernel_id=name, attempt=attempt), request, started_id(cause, attempt))
        began = self._clock.monotonic()
        try:
            artifact = self._make(request)
            artifact_ref = put_artifact(self._store, artifact)
        # torch reports what it cannot allocate as RuntimeError; a full disk is an OSError. Each is an answer.
        except (EsperError, OSError, RuntimeError, MemoryError) as error:
            self._fail(request, error, attempt=attempt)
            return
        compile_ms = (self._clock.monotonic() - began) * 1000.0
        manifest = artifact.manifest
        update = ly.KernelCatalogUpdate(
            blueprint_id=manifest.request.blueprint_id,
            artifact_ref=artifact_ref,
            checksum=manifest.weights_digest,
            guard_digest=manifest.guard_digest,
            compile_ms=compile_ms,
            manifest=manifest,
            kernel_id=name,
        )
        self._append(update, request, updated_id(cause, attempt))
        self._finish(request, artifact_ref, compile_ms)

    def _make(self, request: ly.CompileRequested) -> KernelArtifact:
        if not request.meta.subject == request.kernel_id == kernel_id(request.request):
            raise IntegrityError(
                f"request for kernel {request.meta.subject} contradicts itself",
                cause="its key, its kernel_id and the digest of what it asks for differ",
                next_step="ask again with the kernel_id of the request",
            )
        return self._compiler.compile(request.request)

    def _finish(self, request: ly.CompileRequested, artifact_ref: str, compile_ms: float) -> None:
        finished = ly.CompileFinished(
            kernel_id=request.meta.subject, artifact_ref=artifact_ref, compile_ms=compile_ms, strategy="eager"
        )
        self._append(finished, request, ended_id(request.meta.event_id))

    def _fail(self, request: ly.CompileRequested, error: BaseException, *, attempt: int) -> None:
        _logger.warning("kernel %s cannot be compiled: %s", request.meta.subject, error)
        failed = ly.CompileFailed(
            kernel_id=request.meta.subject,
            blueprint_id=request.request.blueprint_id,
            reason=reason_of(error),
            attempt=attempt,
        )
        self._append(failed, request, ended_id(request.meta.event_id))

    def _append(self, message: EventMessage, request: ly.CompileRequested, event_id: str) -> None:
        meta = request.meta
        self._publisher.publish(
            message,
            key=meta.subject,
            causation_id=meta.event_id,
            correlation_id=meta.correlation_id,
            event_id=event_id,
        )


def build_service(
    fabric: Fabric, *, blueprints: BlueprintBuilder, instance: str = "tezzeret-0", store: BlobStore | None = None
) -> TezzeretForge:
    """Return the forge; it compiles what `blueprints` knows into the home's blob store.

    `instance` is the stable name of this member in its group.
    """
    return TezzeretForge(
        fabric,
        compiler=TezzeretCompiler(blueprints),
        store=store or DirectoryBlobStore(fabric.home.blobs),
        instance=instance,
    )
