"""Compiled parts, made beside the forge's own work: nobody waits for them, and nobody is held up by them."""

from __future__ import annotations

import logging
import threading
from typing import Final

from esper.core.crash_points import crash_point
from esper.core.errors import EsperError, IntegrityError, UsageError
from esper.core.ids import sha256_hex
from esper.core.kernel import (
    BlobMissing,
    BlobStore,
    KernelArtifact,
    get_artifact,
    pack_part,
    verify_artifact,
    why_eager,
)
from esper.core.settings import Settings
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.oona import Fabric, Publisher
from esper.tezzeret._compiler import TezzeretCompiler
from esper.tezzeret._faults import CompilerStopped, passes, reason_of
from esper.tezzeret._judge import BlueprintJudge, BlueprintSource
from esper.tezzeret._metrics import ForgeMetrics
from esper.tezzeret._part_jobs import KINDS, PartFacts, due_parts, fold_parts, part_id, part_report_id
from esper.tezzeret._subprocess import CompilerProcess, Limits

_logger = logging.getLogger("esper.tezzeret")

_CATALOG: Final = "kernel-catalog"
_LOOK_SECONDS: Final = 1.0
_TRIES: Final = 2
_BATCH: Final = 64
#: Compilers leave the cores to whoever trains.
_NICENESS: Final = 10


class PartForge:
    """Makes the compiled parts that are due, one after the other, each in a compiler subprocess; one thread.

    A part is made in one subprocess and tried in a fresh one. Whatever comes of it is said once, in a record that is
    the part's manifest: chosen, or eager with the reason. A verdict that stands in the log is not sought again.
    """

    def __init__(
        self,
        fabric: Fabric,
        *,
        blueprints: BlueprintSource,
        publisher: Publisher,
        store: BlobStore,
        metrics: ForgeMetrics,
        stop: threading.Event,
        conservative: threading.Event,
    ) -> None:
        self._fabric = fabric
        self._settings: Settings = fabric.settings
        self._publisher = publisher
        self._store = store
        self._metrics = metrics
        self._stop = stop
        #: While it is set the forge has trouble enough: no part is begun.
        self._conservative = conservative
        self._home_id = fabric.home.home_id
        self._judge = BlueprintJudge(fabric, blueprints)
        limits = Limits(self._settings.compile_part_seconds_max, self._settings.compile_memory_bytes_max)
        self._maker = TezzeretCompiler(
            blueprints, process=CompilerProcess(stop=stop, niceness=_NICENESS), limits=limits
        )
        self._trier = TezzeretCompiler(blueprints, process=CompilerProcess(stop=stop), limits=limits)
        self._facts = PartFacts()
        partitions = range(fabric.topics[_CATALOG].partitions)
        self._log = fabric.reader({(_CATALOG, partition): "begin" for partition in partitions})

    def run(self) -> None:
        """Make what is due until the forge stops."""
        try:
            platform = self._maker.platform()
            while not self._stop.is_set():
                if self._conservative.is_set() or not self._step(platform):
                    self._stop.wait(_LOOK_SECONDS)
        except CompilerStopped:
            _logger.info("a compiled part is left to the forge's next life")
        # Parts are worth nobody's end; the forge goes on without them, and so do the kernels.
        except (EsperError, OSError) as error:
            _logger.exception("no more compiled parts are made")
            self._metrics.event("no more compiled parts are made", level=ly.TELEMETRY_LEVEL_ERROR, cause=str(error))
        finally:
            for compiler in (self._maker, self._trier):
                compiler.close()
            self._judge.close()
            self._log.close()

    def _step(self, platform: ly.Platform) -> bool:
        """Make one part that is due; return whether there was one."""
        for event in self._log.read_to_end():
            self._facts = fold_parts(self._facts, event.message)
        due = due_parts(self._facts, forge=self._home_id, platform=platform)
        if not due:
            return False
        name, artifact_ref, kind = due[0]
        record = self._verdict(artifact_ref, kind, platform)
        record.kernel_id, record.artifact_ref, record.kind = name, artifact_ref, kind
        record.forge = self._home_id
        record.platform.CopyFrom(platform)
        self._publish(record, name, part_id(artifact_ref, kind, self._home_id, platform))
        crash_point("tezzeret.part-listed")
        self._metrics.part(record)
        return True

    def _verdict(self, artifact_ref: str, kind: ly.CompiledKind, platform: ly.Platform) -> ly.KernelPartCompiled:
        """Return what became of a part: made, tried, stored and judged, or not had and why."""
        try:
            artifact = get_artifact(self._store, artifact_ref)
            verify_artifact(artifact)
            refused = self._judge.run_refusal(artifact.manifest.request.blueprint_id)
        except (BlobMissing, IntegrityError, UsageError) as error:
            return ly.KernelPartCompiled(reason=reason_of(error))
        manifest = artifact.manifest
        about = ly.KernelPartCompiled(blueprint_id=manifest.request.blueprint_id, guard_digest=manifest.guard_digest)
        if refused:
            about.reason = refused
            return about
        for attempt in range(1, _TRIES + 1):
            try:
                about.MergeFrom(self._make(artifact, artifact_ref, kind, platform))
                break
            except CompilerStopped:
                raise
            except (EsperError, OSError, MemoryError) as error:
                about.reason = reason_of(error)
                _logger.warning("attempt %d at a part of %s failed: %s", attempt, manifest.kernel_id, error)
                if not passes(error):
                    break
        return about

    def _make(
        self, artifact: KernelArtifact, artifact_ref: str, kind: ly.CompiledKind, platform: ly.Platform
    ) -> ly.KernelPartCompiled:
        assert kind in KINDS, "nobody makes other kinds"
        packages, compile_ms = self._maker.compile_part(artifact, trains=kind == ly.COMPILED_KIND_AOT_TRAIN_PACKAGE)
        crash_point("tezzeret.part-made")
        self._trier.close()  # a fresh process: what the trial says of opening is true of any other
        samples = self._settings.prewarm_samples
        record, benchmark = self._trier.try_part(artifact, packages, batch=_BATCH, samples=samples)
        record.compile_ms = compile_ms
        record.reason = record.reason or why_eager(record)
        record.chosen = not record.reason
        if record.chosen:
            content = pack_part(packages)
            record.part_digest, record.part_bytes = sha256_hex(content), len(content)
            self._store.put(content)
        crash_point("tezzeret.part-stored")
        report = ly.BenchmarkReport(benchmark=benchmark)
        self._publish(report, artifact.manifest.kernel_id, part_report_id(artifact_ref, kind, self._home_id, platform))
        return record

    def _publish(self, message: EventMessage, name: str, event_id: str) -> None:
        self._publisher.publish(message, key=name, event_id=event_id)
