"""A small history of a whole system, told event by event by a writer of `narrator.py`.

Seven runs on two tasks: seeds that helped and one that hurt, a worker that was lost and one that was fenced, a late
command, a policy that was promoted and rolled back, kernels that came, failed and never came, telemetry, dead letters.
"""

from __future__ import annotations

from esper.leyline import messages as ly
from tests.projection.narrator import BEGINNING_MS, LEARNED, Run, Writer, named


def helped(writer: Writer) -> None:
    """Tell run-helped: BP003 on digits brought the held-out loss from 1.0 to 0.75 and was kept."""
    run = Run(writer, "run-helped")
    run.request()
    run.take()
    run.epoch(1, 1.0, ly.SEED_OP_GERMINATE, "BP003")
    run.move(1, "TRAINING", "BP003", came_from="GERMINATED")
    run.packet(2, 0.75, losses=(1.0, 0.875))
    run.decide(2, ly.SEED_OP_START_GRAFTING)
    run.gate(2, ly.SEED_GATE_G2_STABILITY, 0.125)
    run.move(2, "BLENDING", "BP003", came_from="TRAINING", losses=(1.0, 0.875))
    run.settle(2, ly.SEED_OP_START_GRAFTING)
    run.packet(3, 0.5, losses=(1.0, 0.75))
    run.decide(3, ly.SEED_OP_FOSSILIZE)
    run.gate(3, ly.SEED_GATE_G4_SYSTEM_IMPACT, 0.25)
    run.move(3, "FOSSILIZED", "BP003", came_from="BLENDING", losses=(1.0, 0.75))
    run.settle(3, ly.SEED_OP_FOSSILIZE)
    run.finish(accuracy=0.875, loss=0.375, kept="BP003")
    run.report(2, "SUCCESS", gain=0.25, reward=0.5)


def hurt(writer: Writer) -> None:
    """Tell run-hurt: a learned policy grafted BP003 on digits, which raised the loss; attempt 1 was fenced."""
    run = Run(writer, "run-hurt", policy=LEARNED, seed=2)
    run.request()
    run.take()
    run.epoch(1, 1.0, ly.SEED_OP_GERMINATE, "BP003")
    run.move(1, "TRAINING", "BP003", came_from="GERMINATED")
    zombie = Run(writer, "run-hurt", policy=LEARNED, seed=2)
    run.attempt = 2
    run.take(resumed=1)
    zombie.packet(2, 0.0, losses=(9.0, 0.0))
    zombie.move(2, "FOSSILIZED", "BP003", came_from="TRAINING")
    zombie.gate(2, ly.SEED_GATE_G4_SYSTEM_IMPACT, 9.0)
    run.packet(2, 1.25, losses=(1.0, 1.125))
    run.decide(2, ly.SEED_OP_START_GRAFTING)
    run.settle(2, ly.SEED_OP_START_GRAFTING, late=1)
    run.move(2, "BLENDING", "BP003", came_from="TRAINING")
    run.packet(3, 1.5, losses=(1.0, 1.5))
    run.decide(3, ly.SEED_OP_FOSSILIZE)
    run.gate(3, ly.SEED_GATE_G4_SYSTEM_IMPACT, -0.5)
    run.settle(3, ly.SEED_OP_FOSSILIZE, refused="gate:SEED_GATE_G4_SYSTEM_IMPACT")
    refused = ly.SeedMoveRejected(
        run_id="run-hurt", attempt=2, epoch=3, seed_id="hidden.1", reason="gate:SEED_GATE_G4_SYSTEM_IMPACT",
        from_stage=ly.SEED_STAGE_BLENDING, to_stage=ly.SEED_STAGE_FOSSILIZED,
    )  # fmt: skip
    writer.tell(refused, "run-hurt")
    for attempt, epoch in ((1, 2), (2, 2)):
        tuned = ly.SeedTuned(
            run_id="run-hurt", attempt=attempt, epoch=epoch, seed_id="hidden.1", stage=ly.SEED_STAGE_TRAINING,
            rate_factor=0.5, epochs=2, reason="command:fine_tune",
        )  # fmt: skip
        writer.tell(tuned, "run-hurt")
    for attempt, epoch in ((1, 2), (2, 3)):
        _trial(writer, attempt=attempt, epoch=epoch)
    run.move(3, "CULLED", "BP003", came_from="BLENDING", reason="gate:G4_SYSTEM_IMPACT")
    run.finish(accuracy=0.625, loss=1.0)
    run.report(2, "REGRESSION", gain=-0.5, reward=-0.5)


def _trial(writer: Writer, *, attempt: int, epoch: int) -> None:
    found = ly.KernelQuarantined(
        training_run_id="run-hurt", attempt=attempt, epoch=epoch, seed_id="hidden.2", slot="hidden",
        blueprint_id="BP045", artifact_ref="f" * 64, verdict=ly.QUARANTINE_VERDICT_NOT_FINITE,
        detail="step 3: a number of its output is none", steps=3, seconds=1.5, peak_memory_bytes=4_096,
        figures={"limit_wall_seconds": 10.0},
    )  # fmt: skip
    writer.tell(found, "run-hurt")


def others(writer: Writer) -> None:
    """Tell of a plain run, one on another task, one that waits, one undecided, one lost and one that is asked for."""
    plain = Run(writer, "run-plain", policy=("noop", "1", "0" * 64), seed=1)
    plain.request()
    plain.take()
    plain.epoch(1, 1.0, ly.SEED_OP_UNKNOWN)
    plain.finish(accuracy=0.75, loss=0.5, epochs=1)
    other = Run(writer, "run-spirals", task="spirals")
    other.request()
    other.take()
    other.epoch(1, 1.0, ly.SEED_OP_GERMINATE, "BP001")
    other.move(1, "TRAINING", "BP001", came_from="GERMINATED")
    other.packet(2, 0.5, losses=(0.5, 0.375))
    other.unanswered(2)
    other.finish(accuracy=1.0, loss=0.25, epochs=2)
    undecided = Run(writer, "run-undecided")
    undecided.request()
    undecided.take()
    paused = ly.GrowthState(breaker=ly.CIRCUIT_STATE_CLOSED, paused=True, paused_until_epoch=3)
    undecided.packet(1, 1.0, growth=paused)
    lost = Run(writer, "run-lost")
    lost.request()
    lost.take()
    failed = ly.TrainingRunFailed(run_id="run-lost", attempt=1, reason="worker_lost", detail="no heartbeat", epochs=0)
    writer.tell(failed, "run-lost", after_ms=6_000)
    Run(writer, "run-waiting", task="spirals").request()


def checkpoints(writer: Writer) -> None:
    """Tell of two checkpoints of one epoch, and a return to it."""
    for digest in ("c" * 64, "d" * 64):
        saved = ly.CheckpointSaved(run_id="run-helped", attempt=1, epoch=2, blob_digest=digest, size_bytes=4_096)
        writer.tell(saved, "run-helped")
    back = ly.RunRolledBack(
        run_id="run-helped", attempt=1, from_epoch=3, to_epoch=2, checkpoint_digest="d" * 64, reason="diverged",
        rate_factor=0.5, faults=1,
    )  # fmt: skip
    writer.tell(back, "run-helped")


def kernels(writer: Writer) -> None:
    """Tell of kernels: one that came after 700 ms, one that failed, one that nobody answered."""
    for blueprint, name in (("BP001", "linear"), ("BP003", "bottleneck")):
        descriptor = ly.BlueprintDescriptor(
            blueprint_id=blueprint, name=name, tier=ly.BLUEPRINT_TIER_SAFE, layouts=["vector"]
        )
        writer.tell(ly.BlueprintRegistered(descriptor=descriptor), blueprint)
    _approvals(writer)
    _ask(writer, "kernel-3", "BP003", run_id="run-helped")
    wanted = ly.KernelRequestSpec(blueprint_id="BP003", layout="vector", dtype="float32")
    writer.tell(ly.CompileRequested(kernel_id="kernel-3", request=wanted), "kernel-3", after_ms=100)
    writer.tell(ly.CompileStarted(kernel_id="kernel-3", attempt=1), "kernel-3", after_ms=100)
    manifest = ly.ArtifactManifest(
        request=wanted, spec_bytes=100, weights_bytes=300, parameters=64, multiply_adds_per_sample=64, strategy="eager"
    )
    update = ly.KernelCatalogUpdate(
        kernel_id="kernel-3", blueprint_id="BP003", artifact_ref="e" * 64, compile_ms=450.0, manifest=manifest
    )
    writer.tell(update, "kernel-3", after_ms=450)
    finished = ly.CompileFinished(
        kernel_id="kernel-3", artifact_ref="e" * 64, compile_ms=450.0, strategy="conservative",
        fallback_reason="the compiler timed out",
        prewarm=ly.LatencyFigures(samples=50, p50_ms=0.25, p95_ms=0.5, batch=1),
    )  # fmt: skip
    writer.tell(finished, "kernel-3")
    _compiled_parts(writer)
    for _ in range(2):
        ready = ly.KernelArtifactReady(request_id=named("ask-kernel-3"), kernel_id="kernel-3", artifact_ref="e" * 64)
        writer.tell(ready, "kernel-3", cause=named("ask-kernel-3"), after_ms=50)
    _ask(writer, "kernel-1", "BP001", run_id="run-spirals")
    writer.tell(ly.CompileStarted(kernel_id="kernel-1", attempt=2), "kernel-1")
    writer.tell(ly.CompileFailed(kernel_id="kernel-1", blueprint_id="BP001", reason="out of memory"), "kernel-1")
    error = ly.KernelArtifactError(request_id=named("ask-kernel-1"), kernel_id="kernel-1", reason="out of memory")
    writer.tell(error, "kernel-1", cause=named("ask-kernel-1"), after_ms=250)
    _ask(writer, "kernel-9", "BP003", run_id="run-undecided")


def _approvals(writer: Writer) -> None:
    """Tell of blueprints that people decided on: one approved, one that changed since, one withdrawn, one risky."""
    ids = {"BP022": "approved", "BP023": "changed", "BP024": "withdrawn", "BP043": "risky"}
    for blueprint, name in ids.items():
        tier = ly.BLUEPRINT_TIER_HIGH_RISK if name == "risky" else ly.BLUEPRINT_TIER_EXPERIMENTAL
        descriptor = ly.BlueprintDescriptor(
            blueprint_id=blueprint, name=name, tier=tier, layouts=["vector"], approval_required=True,
            quarantine_only=name == "risky",
        )  # fmt: skip
        digest = "2" * 64 if name == "changed" else "1" * 64
        writer.tell(ly.BlueprintRegistered(descriptor=descriptor, descriptor_digest=digest), blueprint)
        approved = ly.BlueprintApproved(
            blueprint_id=blueprint, descriptor_digest="1" * 64, approved_by="ada", reason="looked at"
        )
        writer.tell(approved, blueprint)
    withdrawn = ly.BlueprintWithdrawn(
        blueprint_id="BP024", descriptor_digest="1" * 64, withdrawn_by="grace", reason="it overflows"
    )
    writer.tell(withdrawn, "BP024")


def _compiled_parts(writer: Writer) -> None:
    """Tell of two compiled parts of kernel-3, one of them used, of what was measured, and of bytes that were wrong."""
    platform = ly.Platform(torch_version="2.11", device="cpu", isa="AVX2", threads=2)
    kinds = ((ly.COMPILED_KIND_INDUCTOR_CACHE, 1.5, ""), (ly.COMPILED_KIND_AOT_PACKAGE, 1.0, "slower than 1.1x"))
    for kind, speedup, reason in kinds:
        part = ly.KernelPartCompiled(
            kernel_id="kernel-3", artifact_ref="e" * 64, blueprint_id="BP003", kind=kind, platform=platform,
            part_digest=str(kind) * 64, part_bytes=2_048, forge="home", speedup=speedup, chosen=not reason,
            reason=reason, compile_ms=2_000.0, warm_compile_ms=250.0,
            parity=ly.ParityFigures(batches=[1, 7], forward_abs_max=1e-6, tolerance=1e-5, passed=True),
        )  # fmt: skip
        writer.tell(part, "kernel-3")
    benchmark = ly.BlueprintBenchmark(version=1, blueprint_id="BP003", kernel_id="kernel-3", layout="vector")
    benchmark.platform.CopyFrom(platform)
    for profile, p50 in (("eager.forward", 0.25), ("inductor.forward", 0.125)):
        latency = ly.LatencyFigures(samples=200, p50_ms=p50, p95_ms=2 * p50, batch=32)
        benchmark.profiles.add(name=profile, latency=latency, throughput_samples_per_s=32_000 / p50)
    writer.tell(ly.BenchmarkReport(benchmark=benchmark), "kernel-3")
    wrong = ly.KernelIntegrityFailed(
        kernel_id="kernel-3", artifact_ref="e" * 64, part="weights", reason="the stored bytes have another SHA-256"
    )
    writer.tell(wrong, "kernel-3")
    removed = ly.KernelEvicted(kernel_id="kernel-0", artifact_ref="0" * 64, reason="unnamed", freed_bytes=4_096)
    writer.tell(removed, "kernel-0")


def _ask(writer: Writer, kernel: str, blueprint: str, *, run_id: str) -> None:
    ask = ly.KernelPrefetchRequest(
        request_id=named(f"ask-{kernel}"), blueprint_id=blueprint, training_run_id=run_id, kernel_id=kernel
    )
    writer.tell(ask, kernel, event_id=named(f"ask-{kernel}"), after_ms=1_000)


def policies(writer: Writer) -> None:
    """Tell of three versions of a policy: v1 decides, v2 was refused, v3 was promoted and given up for v1."""
    for version, parent, gain in (("v1", "", 0.25), ("v2", "v1", -0.125), ("v3", "v1", 0.5)):
        policy = {"policy_id": "default", "tamiyo_policy_version": version, "policy_digest": _digest(version)}
        update = ly.PolicyUpdate(
            **policy, payload=version.encode() * 64, weights_digest="9" * 64, algorithm="ppo_vtrace", seed=7,
            parent_policy_version=parent, parent_policy_digest=_digest(parent) if parent else "",
            code_version="0.1.0", episodes=40, transitions=1_600, scores={"policy_loss": 0.125},
            training_data=[
                ly.OffsetRange(topic="decisions", partition=0, first_offset=0, end_offset=1_000),
                ly.OffsetRange(topic="field-reports", partition=3, first_offset=10, end_offset=610),
            ],
        )  # fmt: skip
        writer.tell(update, "default", event_id=named(f"update-{version}"), after_ms=1_000)
        checks = [
            ly.GateCheck(name="effective_samples", value=64, bound=30, comparison=">=", passed=True),
            ly.GateCheck(name="gain_lower", value=gain, bound=0, comparison=">=", passed=gain > 0),
        ]
        verdict = ly.PolicyValidated(
            **policy, passed=gain > 0, checks=checks, incumbent_policy_version=parent, scores={"wis_gain": gain},
            reason="" if gain > 0 else "gain_lower",
        )  # fmt: skip
        writer.tell(verdict, "default", event_id=named(f"verdict-{version}"), after_ms=1_000)
        if gain > 0:
            promoted = ly.PolicyPromoted(
                **policy,
                previous_policy_version=parent,
                validation_event_id=named(f"verdict-{version}"),
                issued_by="simic",
            )
            writer.tell(promoted, "default", after_ms=1_000)
    rolled_back = ly.PolicyRolledBack(
        policy_id="default", tamiyo_policy_version="v3", policy_digest=_digest("v3"), restored_policy_version="v1",
        restored_policy_digest=_digest("v1"), issued_by="tamiyo", reason="reward below the incumbent's",
        breaches=[ly.GateCheck(name="mean_reward", value=-0.5, bound=0, comparison=">=", passed=False)],
    )  # fmt: skip
    writer.tell(rolled_back, "default", after_ms=1_000)


def _digest(version: str) -> str:
    return {"v1": "b", "v2": "2", "v3": "3"}[version] * 64


def telemetry(writer: Writer) -> None:
    """Tell of ten epochs' figures, a quantile, a span that ended and one that did not, two healths and a warning."""
    for epoch in range(1, 11):
        packet = ly.TelemetryPacket(packet_id=f"packet-{epoch}", source_subsystem="tolaria", level=1)
        labels = {"run_id": "run-helped", "epoch": str(epoch)}
        packet.metrics.add(name="tolaria.training.latency_ms", value=100.0 * epoch, unit="ms", attributes=labels)
        packet.metrics.add(name="tolaria.training.loss", value=1.0 / epoch, unit="1", attributes=labels)
        packet.timestamp.FromMilliseconds(BEGINNING_MS + 1_000 * epoch)
        writer.tell(packet, "tolaria", after_ms=1_000)
    packet = ly.TelemetryPacket(packet_id="packet-oona", source_subsystem="oona", level=2)
    packet.timestamp.FromMilliseconds(BEGINNING_MS + 20_000)
    packet.metrics.add(
        name="oona.publish.latency_ms", value=4.0, unit="ms", attributes={"quantile": "0.99", "source": "tolaria"}
    )
    packet.metrics.add(name="oona.queue_depth_max", value=3.0, unit="records")
    for number, name in enumerate(("retain", "retain", "emit")):
        span = packet.spans.add(span_id=f"span-{number}", name=name)
        span.start_time.FromMilliseconds(BEGINNING_MS)
        if name == "retain":
            span.end_time.FromMilliseconds(BEGINNING_MS + 500 * (number + 1))
    packet.events.add(event_id="w-1", description="the backlog is long", level=ly.TELEMETRY_LEVEL_WARNING)
    packet.events.add(event_id="i-1", description="all is well", level=ly.TELEMETRY_LEVEL_INFO)
    for member, status in (("housekeeper-0", ly.HEALTH_STATUS_DEGRADED), ("tolaria-0", ly.HEALTH_STATUS_HEALTHY)):
        packet.system_health.status = status
        packet.system_health.indicators["member"] = member
        packet.packet_id = f"packet-{member}"
        writer.tell(packet, "oona")
        del packet.metrics[:], packet.spans[:], packet.events[:]
        packet.ClearField("meta")


def letters(writer: Writer) -> None:
    """Tell of a forged record, and of a key whose record failed while two wait; of one handled again, one given up."""
    _letter(writer, "runs", 5, "BAD_SIGNATURE")
    _letter(writer, "runs", 6, "UNSIGNED")
    writer.tell(ly.Discarded(topic="runs", partition=0, offset=6, note="a test of ours"), "runs-0-6", after_ms=1_000)
    for offset, reason in ((7, "HANDLER_FAILED"), (8, "WAITS_FOR_KEY"), (9, "WAITS_FOR_KEY")):
        _letter(writer, "system-state", offset, reason, group="esper.tamiyo", key="run-helped")
    _letter(writer, "system-state", 3, "HANDLER_FAILED", group="esper.tamiyo", key="run-plain")
    for cause in ("", named("order")):
        redriven = ly.Redriven(
            topic="system-state",
            partition=0,
            offset=3,
            consumer_group="esper.tamiyo",
            letter_id=named("letter-system-state-3"),
        )
        writer.tell(redriven, "system-state-0-3", cause=cause, after_ms=1_000)


def _letter(writer: Writer, topic: str, offset: int, reason: str, *, group: str = "", key: str = "run-x") -> None:
    letter = ly.DeadLetter(
        topic=topic, partition=0, offset=offset, key=key.encode(), attempts=3 if group else 1, consumer_group=group,
        reason=ly.DeadLetterReason.Value(f"DEAD_LETTER_REASON_{reason}"), detail=f"detail of {offset}",
        value_digest="7" * 64, value_bytes=100, record_type="esper.leyline.v1.SystemStatePacket",
    )  # fmt: skip
    writer.tell(letter, f"{topic}-0-{offset}", event_id=named(f"letter-{topic}-{offset}"), after_ms=1_000)


def whole(writer: Writer, *, with_letters: bool = True) -> None:
    """Tell all of it."""
    for part in (kernels, helped, hurt, others, checkpoints, policies, telemetry):
        part(writer)
    if with_letters:
        letters(writer)
