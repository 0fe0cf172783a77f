"""What the forge says of one request, under ids that another life of it gives the same events."""

from __future__ import annotations

from esper.core.crash_points import crash_point
from esper.core.kernel import KernelArtifact
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.oona import Publisher
from esper.tezzeret._jobs import KernelFacts, ended_id, failed_id, reason_of, reported_id, started_id, updated_id


class JobRecord:
    """Appends the events of one request for a compilation; each is acknowledged when its method returns."""

    def __init__(self, publisher: Publisher, request: ly.CompileRequested) -> None:
        self._publisher = publisher
        self.request = request
        self.name = request.meta.subject
        self.cause = request.meta.event_id

    def started(self, attempt: int) -> None:
        """Say that an attempt begins."""
        self._append(ly.CompileStarted(kernel_id=self.name, attempt=attempt), started_id(self.cause, attempt))
        crash_point("tezzeret.started")

    def catalogued(self, artifact: KernelArtifact, artifact_ref: str, *, compile_ms: float, attempt: int) -> None:
        """Put a kernel whose bytes are all stored into the catalogue."""
        manifest = artifact.manifest
        update = ly.KernelCatalogUpdate(
            blueprint_id=manifest.request.blueprint_id,
            artifact_ref=artifact_ref,
            checksum=manifest.weights_digest,
            guard_digest=manifest.guard_digest,
            compile_ms=compile_ms,
            manifest=manifest,
            kernel_id=self.name,
        )
        self._append(update, updated_id(self.cause, attempt))
        crash_point("tezzeret.catalogued")

    def measured(self, benchmark: ly.BlueprintBenchmark) -> None:
        """Say how fast the kernel is."""
        crash_point("tezzeret.measured")
        self._append(ly.BenchmarkReport(benchmark=benchmark), reported_id(self.cause))
        crash_point("tezzeret.reported")

    def finished(self, facts: KernelFacts, *, fallback_reason: str) -> ly.CompileFinished:
        """End the request well and return the event."""
        event = ly.CompileFinished(
            kernel_id=self.name,
            artifact_ref=facts.artifact_ref,
            compile_ms=facts.compile_ms,
            strategy="eager",
            fallback_reason=fallback_reason,
            prewarm=facts.prewarm,
        )
        self._append(event, ended_id(self.cause))
        crash_point("tezzeret.finished")
        return event

    def failed(self, error: BaseException, *, attempt: int, retry_after_seconds: float | None) -> ly.CompileFailed:
        """Say that an attempt failed, which ends the request unless it is to be tried again; return the event."""
        retried = retry_after_seconds is not None
        event = ly.CompileFailed(
            kernel_id=self.name,
            blueprint_id=self.request.request.blueprint_id,
            reason=reason_of(error),
            attempt=attempt,
            retried=retried,
            retry_after_ms=(retry_after_seconds or 0.0) * 1e3,
        )
        self._append(event, failed_id(self.cause, attempt) if retried else ended_id(self.cause))
        if retried:
            crash_point("tezzeret.retrying")
        return event

    def _append(self, message: EventMessage, event_id: str) -> None:
        self._publisher.publish(
            message,
            key=self.name,
            causation_id=self.cause,
            correlation_id=self.request.meta.correlation_id,
            event_id=event_id,
        )
