"""The forge: a member that answers each request for a compilation with exactly one end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.crash_points import crash_point
from esper.core.errors import EsperError, IntegrityError
from esper.core.kernel import (
    BlobMissing,
    BlobStore,
    KernelArtifact,
    check_kernel,
    get_artifact,
    kernel_id,
    put_artifact,
    verify_artifact,
)
from esper.core.rng import jitter
from esper.leyline import messages as ly
from esper.oona import Event, Fabric
from esper.tezzeret._compiler import TezzeretCompiler
from esper.tezzeret._faults import CompileRefused, CompilerFault, CompilerStopped, passes
from esper.tezzeret._health import ForgeHealth
from esper.tezzeret._jobs import (
    SOURCE,
    KernelFacts,
    Step,
    Strategy,
    backoff_seconds,
    decide,
    fold,
    prewarm_of,
    reason_of,
)
from esper.tezzeret._judge import BlueprintJudge, BlueprintSource
from esper.tezzeret._metrics import ForgeMetrics
from esper.tezzeret._part_forge import PartForge
from esper.tezzeret._plan import ForgePlan
from esper.tezzeret._records import JobRecord

_logger = logging.getLogger("esper.tezzeret")

GROUP: Final = "esper.tezzeret"
_REQUESTS: Final = "kernel-requests"
_CATALOG: Final = "kernel-catalog"
#: The batch that prewarming runs: that of the shipped tasks.
_PREWARM_BATCH: Final = 64


class TezzeretForge:
    """Member of the group `esper.tezzeret` on kernel-requests.

    Jobs are a fold of kernel-catalog, read to its end before each request: after a crash the forge goes on
    where the log stops, makes nothing twice that is there and right, and ends every request once.

    A fault that may pass is tried again, with a backoff, up to `plan.attempts_max` times. Faults of several jobs in
    a row open a breaker: until a probe succeeds the forge makes canonical artifacts alone, at one attempt each.
    """

    def __init__(
        self,
        fabric: Fabric,
        *,
        compiler: TezzeretCompiler,
        blueprints: BlueprintSource,
        store: BlobStore,
        instance: str,
        stop: threading.Event,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._fabric = fabric
        self._compiler = compiler
        self._blueprints = blueprints
        self._store = store
        self._instance = instance
        #: Set when the member is to stop; the compiler's subprocess sees it too, in the middle of its work.
        self._stop = stop
        self._clock = clock
        self._plan = ForgePlan.of(fabric.settings)
        self._metrics = ForgeMetrics(instance)
        self._health = ForgeHealth(
            failures_max=self._plan.failures_max,
            open_seconds=self._plan.open_seconds,
            metrics=self._metrics,
            clock=clock,
        )
        self._jobs: dict[str, KernelFacts] = {}
        self._publisher = fabric.publisher(SOURCE)
        self._judge = BlueprintJudge(fabric, blueprints)
        partitions = range(fabric.topics[_CATALOG].partitions)
        self._own_output = fabric.reader({(_CATALOG, partition): "begin" for partition in partitions})

    @property
    def metrics(self) -> ForgeMetrics:
        """What the forge counts of its own work; emitted while it runs."""
        return self._metrics

    def run(self, stop: threading.Event) -> None:
        """Answer requests until `stop` is set; everything appended is acknowledged when it returns.

        Raises:
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
        """
        # A subprocess that does not start now fails the first request by name.
        with suppress(OSError):
            self._compiler.warm_up()
        consumer = self._fabric.consumer(
            group=GROUP,
            instance=self._instance,
            topics=[_REQUESTS],
            handlers={ly.CompileRequested: self._handle},
            publisher=self._publisher,
        )
        threading.Thread(target=self._pass_on, args=(stop,), name="forge-stop", daemon=True).start()
        try:
            with self._metrics.emitted(self._fabric), self._parts():
                consumer.run(stop)
        finally:
            self._compiler.close()
            self._judge.close()
            self._own_output.close()
            self._publisher.close()

    @contextmanager
    def _parts(self) -> Iterator[None]:
        """Make compiled parts beside the block where the settings ask for them."""
        if not self._fabric.settings.compiled_parts:
            yield
            return
        parts = PartForge(
            self._fabric,
            blueprints=self._blueprints,
            publisher=self._publisher,
            store=self._store,
            metrics=self._metrics,
            stop=self._stop,
            conservative=self._health.conservative,
        )
        thread = threading.Thread(target=parts.run, name="forge-parts")
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _pass_on(self, stop: threading.Event) -> None:
        stop.wait()
        self._stop.set()

    def _handle(self, event: Event) -> None:
        request = event.message
        assert isinstance(request, ly.CompileRequested), "the consumer calls a handler with its own type"
        self._catch_up()
        job = JobRecord(self._publisher, request)
        facts = self._jobs.get(job.name, KernelFacts())
        artifact = self._stored(job.name, facts.artifact_ref)
        step = decide(facts, job.cause, stored=artifact is not None, attempts_max=self._plan.attempts_max)
        self._metrics.job(step)
        if step is Step.COMPILE:
            self._compile(job, facts)
        elif step is Step.FINISH and artifact is not None:
            self._finish_stored(job, artifact, facts)
        elif step is Step.GIVE_UP:
            tries = facts.tries[job.cause]
            lost = CompileRefused(f"{tries} attempts began and none came to an end: each ended this forge's life")
            self._fail(job, lost, attempt=facts.attempts, tries=tries)

    def _catch_up(self) -> None:
        for event in self._own_output.read_to_end():
            name = event.meta.subject
            self._jobs[name] = fold(self._jobs.get(name, KernelFacts()), event.message)

    def _stored(self, name: str, artifact_ref: str) -> KernelArtifact | None:
        """Return the artifact whose bytes are all there and right; None when it has to be made."""
        if not artifact_ref:
            return None
        try:
            artifact = get_artifact(self._store, artifact_ref)
            check_kernel(artifact, artifact_ref, name)
            verify_artifact(artifact)
        except (BlobMissing, IntegrityError) as error:
            _logger.warning("kernel %s has to be compiled again: %s", name, error)
            return None
        return artifact

    def _compile(self, job: JobRecord, facts: KernelFacts) -> None:
        """Try until the request has its end.

        Raises:
            CompilerStopped: the member is stopping; its next life goes on.
        """
        tries, attempt = facts.tries.get(job.cause, 0), facts.attempts
        strategy = self._health.begin()
        while True:  # ends with the request, after `attempts_max` tries at the latest
            tries, attempt = tries + 1, attempt + 1
            try:
                artifact, made = self._attempt(job, attempt)
                break
            except CompilerStopped:
                raise
            # torch reports what it cannot allocate as RuntimeError; a full disk is an OSError. Each is an answer.
            except (EsperError, OSError, RuntimeError, MemoryError) as error:
                again = passes(error) and tries < self._plan.attempts_max and strategy is Strategy.STANDARD
                if not again:
                    self._health.end(strategy, error)
                    self._fail(job, error, attempt=attempt, tries=tries)
                    return
                self._retry(job, error, attempt=attempt, tries=tries)
        self._measure_and_finish(job, artifact, made, strategy, tries=tries)

    def _attempt(self, job: JobRecord, attempt: int) -> tuple[KernelArtifact, KernelFacts]:
        """Make the kernel, store it, say so; return it and what the log says of it now."""
        job.started(attempt)
        began = self._clock.monotonic()
        artifact = self._make(job.request)
        crash_point("tezzeret.made")
        artifact_ref = put_artifact(self._store, artifact)
        crash_point("tezzeret.stored")
        seconds = self._clock.monotonic() - began
        job.catalogued(artifact, artifact_ref, compile_ms=seconds * 1e3, attempt=attempt)
        self._metrics.compiled(seconds)
        return artifact, KernelFacts(artifact_ref=artifact_ref, compile_ms=seconds * 1e3)

    def _make(self, request: ly.CompileRequested) -> KernelArtifact:
        if not request.meta.subject == request.kernel_id == kernel_id(request.request):
            raise IntegrityError(
                f"request for kernel {request.meta.subject} contradicts itself",
                cause="its key, its kernel_id and the digest of what it asks for differ",
                next_step="ask again with the kernel_id of the request",
            )
        name = request.request.blueprint_id
        self._judge.check_make(name)
        return self._compiler.compile(request.request, runs=not self._judge.run_refusal(name))

    def _retry(self, job: JobRecord, error: BaseException, *, attempt: int, tries: int) -> None:
        wait = jitter(backoff_seconds(tries, self._plan.backoff_seconds))
        _logger.warning("kernel %s is tried again in %.1f s: %s", job.name, wait, error)
        self._metrics.failed(job.failed(error, attempt=attempt, retry_after_seconds=wait), retries=tries)
        if self._stop.wait(wait):
            raise CompilerStopped("a compilation is left to be tried again", cause="the forge is stopping")

    def _fail(self, job: JobRecord, error: BaseException, *, attempt: int, tries: int) -> None:
        _logger.warning("kernel %s cannot be compiled: %s", job.name, error)
        self._metrics.failed(job.failed(error, attempt=attempt, retry_after_seconds=None), retries=max(0, tries - 1))

    def _finish_stored(self, job: JobRecord, artifact: KernelArtifact, facts: KernelFacts) -> None:
        """End a request for a kernel that is there; measure it where a crash kept that from happening."""
        tries = facts.tries.get(job.cause, 1)
        try:
            self._judge.check_make(artifact.manifest.request.blueprint_id)
        except EsperError as error:
            self._fail(job, error, attempt=facts.attempts, tries=tries)
            return
        if facts.prewarm is not None:
            self._finish(job, artifact, facts, fault="", tries=tries)
            return
        strategy = self._health.begin()
        try:
            # It may have been made when it had to wait for an approval, and was not run.
            if not self._judge.run_refusal(artifact.manifest.request.blueprint_id):
                self._compiler.check_birth(artifact)
        except (CompilerFault, CompileRefused, IntegrityError) as error:
            self._health.end(strategy, error)
            self._fail(job, error, attempt=facts.attempts, tries=tries)
            return
        self._measure_and_finish(job, artifact, facts, strategy, tries=tries)

    def _measure_and_finish(
        self, job: JobRecord, artifact: KernelArtifact, facts: KernelFacts, strategy: Strategy, *, tries: int
    ) -> None:
        """End a request whose kernel is there; what hinders measuring it is said, and hinders nothing else."""
        fault, error = "", None
        if strategy is Strategy.CONSERVATIVE:
            fault = f"conservative: the breaker is open after faults of {self._health.failures} jobs in a row"
        elif not self._judge.run_refusal(artifact.manifest.request.blueprint_id):
            try:
                benchmark = self._compiler.measure(artifact, batch=_PREWARM_BATCH, samples=self._plan.samples)
                job.measured(benchmark)
                facts = replace(facts, prewarm=prewarm_of(benchmark))
            except CompilerStopped:
                raise
            except (CompilerFault, CompileRefused, IntegrityError) as caught:
                error, fault = caught, reason_of(caught)
                _logger.warning("kernel %s was not measured: %s", job.name, caught)
        self._health.end(strategy, error)
        self._finish(job, artifact, facts, fault=fault, tries=tries)

    def _finish(self, job: JobRecord, artifact: KernelArtifact, facts: KernelFacts, *, fault: str, tries: int) -> None:
        refused = self._judge.run_refusal(artifact.manifest.request.blueprint_id)
        event = job.finished(facts, fallback_reason=fault or refused)
        self._metrics.finished(event, retries=max(0, tries - 1))
