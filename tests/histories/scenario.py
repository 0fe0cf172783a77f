"""What a golden log tells: two runs with all that happens around them, every event type at least once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from esper.core.ids import derive_id
from esper.leyline import EventMessage, fingerprint
from esper.leyline import messages as ly
from tests.histories.golden import SECRET

#: Types that stand in no plain log, and why.
ELSEWHERE: Final = {
    "esper.leyline.v1.LogRestored": "only a restore of an archive to another cluster writes it",
    "esper.leyline.v1.LogCheckpoint": "the housekeeper's own writer appends it after the others",
}
_EPOCHS = 6
_STAGES = (
    ly.SEED_STAGE_DORMANT,
    ly.SEED_STAGE_GERMINATED,
    ly.SEED_STAGE_TRAINING,
    ly.SEED_STAGE_BLENDING,
    ly.SEED_STAGE_SHADOWING,
    ly.SEED_STAGE_PROBATIONARY,
    ly.SEED_STAGE_FOSSILIZED,
)


@dataclass(frozen=True)
class Told:
    """One event: who writes it, under which key, and its id where others follow from it."""

    source: str
    key: str
    message: EventMessage
    event_id: str | None = None
    causation_id: str = ""


def story() -> Iterator[Told]:
    """Yield all events in the order in which they are appended."""
    for number, tier in ((3, ly.BLUEPRINT_TIER_SAFE), (21, ly.BLUEPRINT_TIER_EXPERIMENTAL)):
        yield blueprint(f"BP{number:03d}", tier)
    yield from opinions("BP021")
    yield from kernels("run-golden-a")
    yield quarantine("run-golden-a")
    yield tuning("run-golden-a")
    yield from grown_run("run-golden-a", "mnist1d", seed=7)
    yield from policy()
    yield from lost_run("run-golden-b")
    yield from operations()


def blueprint(name: str, tier: ly.BlueprintTier) -> Told:
    """Return a blueprint's registration."""
    bounds = {"rank": ly.BlueprintParameterBounds(min_value=1, max_value=32)}
    descriptor = ly.BlueprintDescriptor(
        blueprint_id=name,
        name=f"graft {name}",
        tier=tier,
        allowed_parameters=bounds,
        risk=0.25 * tier,
        stage=1,
        description="Adds capacity where it pays.",
        layouts=["vector"],
    )
    return Told("karn", name, ly.BlueprintRegistered(descriptor=descriptor, descriptor_digest=derive_id(name) * 2))


def opinions(name: str) -> Iterator[Told]:
    """Yield what people say of a blueprint: no, and after another look yes."""
    digest = derive_id(name) * 2
    withdrawn = ly.BlueprintWithdrawn(
        blueprint_id=name, descriptor_digest=digest, withdrawn_by="grace", reason="it overflows"
    )
    yield Told("cli", name, withdrawn)
    approved = ly.BlueprintApproved(blueprint_id=name, descriptor_digest=digest, approved_by="ada", reason="mended")
    yield Told("cli", name, approved)


def quarantine(run_id: str) -> Told:
    """Return the end of a kernel's time in quarantine."""
    return Told(
        "kasmina",
        run_id,
        ly.KernelQuarantined(
            training_run_id=run_id, seed_id="hidden.9", slot="hidden", blueprint_id="BP043",
            kernel_id=derive_id("kernel", 3), artifact_ref=derive_id("spec", 3) * 2,
            verdict=ly.QUARANTINE_VERDICT_NOT_FINITE, detail="step 3: an output is NaN", steps=3, seconds=0.5,
            peak_memory_bytes=300_000_000, figures={"limit_seconds": 10.0},
        ),
    )  # fmt: skip


def tuning(run_id: str) -> Told:
    """Return a change of how a seed learns."""
    return Told(
        "kasmina",
        run_id,
        ly.SeedTuned(
            run_id=run_id, attempt=1, epoch=2, seed_id="hidden.1", stage=ly.SEED_STAGE_TRAINING, rate_factor=0.5,
            epochs=3, reason="command:fine_tune",
        ),
    )  # fmt: skip


def compiled_parts(kernel: str, digest: str) -> Iterator[Told]:
    """Yield a compiled part, what was measured, and what happened to stored bytes."""
    platform = ly.Platform(torch_version="2.11.0", device="cpu", isa="AVX2", threads=2)
    latency = ly.LatencyFigures(samples=50, p50_ms=0.25, p95_ms=0.5, batch=32)
    part = ly.KernelPartCompiled(
        kernel_id=kernel, artifact_ref=digest, blueprint_id="BP003", kind=ly.COMPILED_KIND_INDUCTOR_CACHE,
        part_digest=derive_id("part") * 2, part_bytes=65_536, forge="golden", platform=platform,
        guard_digest=derive_id("g") * 2, compile_ms=2_000.0, warm_compile_ms=400.0, speedup=1.25, chosen=True,
        parity=ly.ParityFigures(batches=[1, 2, 7, 64], forward_abs_max=1e-7, tolerance=1e-5, passed=True),
    )  # fmt: skip
    yield Told("tezzeret", kernel, part)
    benchmark = ly.BlueprintBenchmark(
        version=1, blueprint_id="BP003", kernel_id=kernel, layout="vector", platform=platform,
        profiles=[ly.BlueprintBenchmarkProfile(name="eager.forward", latency=latency, throughput_samples_per_s=1e5)],
    )  # fmt: skip
    yield Told("tezzeret", kernel, ly.BenchmarkReport(benchmark=benchmark))
    wrong = ly.KernelIntegrityFailed(kernel_id=kernel, artifact_ref=digest, part="weights", reason="another SHA-256")
    yield Told("urza", kernel, wrong)
    gone = ly.KernelEvicted(kernel_id=kernel, artifact_ref=digest, reason="missing", freed_bytes=0)
    yield Told("urza", kernel, gone)


def kernels(run_id: str) -> Iterator[Told]:
    """Yield a kernel that is compiled and fetched, and one that never will be."""
    request = ly.KernelRequestSpec(
        blueprint_id="BP003", parameters={"rank": 8}, layout="vector", in_shape=[64], out_shape=[64], dtype="float32"
    )
    kernel, digest = derive_id("kernel", 1), derive_id("spec", 1) * 2
    manifest = ly.ArtifactManifest(
        request=request, kernel_id=kernel, spec_digest=digest, spec_bytes=412, weights_digest=derive_id("w") * 2,
        weights_bytes=4_608, guard_digest=derive_id("g") * 2, parameters=1_024, multiply_adds_per_sample=1_024,
        format_version=1, strategy="inline",
    )  # fmt: skip
    asked = derive_id("request", 1)
    yield Told(
        "tolaria",
        kernel,
        ly.KernelPrefetchRequest(
            request_id=asked, blueprint_id="BP003", training_run_id=run_id, kernel_id=kernel, request=request
        ),
        event_id=asked,
    )
    yield Told("urza", kernel, ly.CompileRequested(kernel_id=kernel, request=request), causation_id=asked)
    yield Told("tezzeret", kernel, ly.CompileStarted(kernel_id=kernel, attempt=1), causation_id=asked)
    done = ly.CompileFinished(kernel_id=kernel, artifact_ref=digest, compile_ms=12.5, strategy="inline")
    yield Told("tezzeret", kernel, done, causation_id=asked)
    update = ly.KernelCatalogUpdate(
        blueprint_id="BP003", artifact_ref=digest, checksum=digest, guard_digest=manifest.guard_digest,
        compile_ms=12.5, manifest=manifest, kernel_id=kernel,
    )  # fmt: skip
    yield Told("tezzeret", kernel, update, causation_id=asked)
    ready = ly.KernelArtifactReady(
        request_id=asked, blueprint_id="BP003", artifact_ref=digest, checksum=digest,
        guard_digest=manifest.guard_digest, kernel_id=kernel, training_run_id=run_id,
    )  # fmt: skip
    yield Told("urza", kernel, ready, causation_id=asked)
    yield from compiled_parts(kernel, digest)
    other, why = derive_id("kernel", 2), "rank 99 is outside its bounds"
    failed = ly.CompileFailed(kernel_id=other, blueprint_id="BP021", reason=why, attempt=1)
    yield Told("tezzeret", other, failed)
    error = ly.KernelArtifactError(
        request_id=derive_id("request", 2), blueprint_id="BP021", reason=why, kernel_id=other, training_run_id=run_id
    )
    yield Told("urza", other, error)


def grown_run(run_id: str, task: str, *, seed: int) -> Iterator[Told]:
    """Yield a run that grafts once, rolls back once and finishes."""
    yield Told(
        "cli",
        run_id,
        ly.TrainingRunRequested(
            run_id=run_id, task=task, host="mlp", policy="heuristic", policy_parameters={"patience": 3},
            epochs=_EPOCHS, seed=seed, device="cpu", hyperparameters={"learning_rate": 0.01, "batch_size": 64},
            re_executable=True, decision_wait_seconds=10, kernel_wait_seconds=60, digest_every_epochs=1,
            slots=["hidden.1"],
        ),
        event_id=derive_id(run_id, "request"),
    )  # fmt: skip
    yield from begun(run_id, attempt=1)
    for epoch in range(1, _EPOCHS + 1):
        yield from one_epoch(run_id, task, epoch, seed=seed)
        if epoch == 2:
            saved = ly.CheckpointSaved(
                run_id=run_id, attempt=1, epoch=2, blob_digest=derive_id("blob") * 2, size_bytes=65_536,
                weights_digest=f"{2:064x}",
            )  # fmt: skip
            yield Told("tolaria", run_id, saved)
        if epoch == 4:
            back = ly.RunRolledBack(
                run_id=run_id, attempt=1, from_epoch=4, to_epoch=2, checkpoint_digest=derive_id("blob") * 2,
                reason="command",
            )  # fmt: skip
            yield Told("tolaria", run_id, back)
    yield Told("tamiyo", run_id, report(run_id, 2), causation_id=derive_id(run_id, "outcome", 2))
    yield Told("tamiyo", run_id, report(run_id, 5), causation_id=derive_id(run_id, "outcome", 5))
    yield Told(
        "tolaria",
        run_id,
        ly.TrainingRunFinished(
            run_id=run_id, attempt=1, epochs=_EPOCHS, accuracy=0.8125, loss=0.5, parameters=5_386,
            multiply_adds=61_000_000, multiply_adds_per_sample=6_144, digest=f"{_EPOCHS:064x}",
            seeds=[ly.SeedSummary(
                seed_id="hidden.1", slot="hidden", blueprint_id="BP003", stage=ly.SEED_STAGE_FOSSILIZED
            )],
            validation_accuracy=0.796875, validation_loss=0.5625,
        ),
    )  # fmt: skip


def begun(run_id: str, *, attempt: int) -> Iterator[Told]:
    """Yield a claim and a start."""
    claimed = ly.TrainingRunClaimed(
        run_id=run_id, attempt=attempt, worker="tolaria-0", request_event_id=derive_id(run_id, "request")
    )
    yield Told("tolaria", run_id, claimed, causation_id=derive_id(run_id, "request"))
    numerics = ly.NumericsFingerprint(torch="2.15.0", python="3.11", instruction_set="avx2", threads=1, device="cpu")
    started = ly.TrainingRunStarted(
        run_id=run_id, attempt=attempt, worker="tolaria-0", numerics=numerics, code_version="0.1.0",
        data_digest=derive_id("data") * 2, parameters=4_362, initial_digest=f"{0:064x}",
    )  # fmt: skip
    yield Told("tolaria", run_id, started)


def one_epoch(run_id: str, task: str, epoch: int, *, seed: int) -> Iterator[Told]:
    """Yield an epoch: packet, decision, command, what seeds did, outcome, telemetry."""
    state_id, decision_id = derive_id(run_id, "state", epoch), derive_id(run_id, "decision", epoch)
    before, after = list(pairwise(_STAGES))[epoch - 1]
    yield Told("tolaria", run_id, packet(run_id, task, epoch, stage=before, seed=seed), event_id=state_id)
    command = order(run_id, epoch)
    decision = ly.DecisionMade(
        run_id=run_id, attempt=1, epoch=epoch, state_event_id=state_id, policy="heuristic", policy_version="1",
        observation_schema="esper.observation.1", observation_names=["validation_loss", "slope"],
        observation=[2.0 / epoch, -0.125],
        heads=[ly.DecisionHead(
            name="operation", actions=["continue", "germinate"], mask=[True, epoch == 2],
            probabilities=[0.25, 0.75], chosen=int(epoch == 2), log_probability=-0.25,
        )],
        log_probability=-0.25, rng_seed=seed, rng_counter=epoch, proposed=command, command_id=command.command_id,
        reasons=["the loss stands still"],
    )  # fmt: skip
    if epoch % 2:
        decision.value_estimate = 0.5
    yield Told("tamiyo", run_id, decision, event_id=decision_id, causation_id=state_id)
    yield Told("tamiyo", run_id, command, event_id=derive_id(decision_id, "command"), causation_id=state_id)
    yield from seed_moves(run_id, epoch, before, after)
    outcome = ly.CommandOutcome(
        run_id=run_id, attempt=1, epoch=epoch, state_event_id=state_id, result=ly.COMMAND_RESULT_APPLIED,
        command_id=command.command_id, command_event_id=derive_id(decision_id, "command"),
        command_offset=epoch - 1, command_type=command.command_type, latency_ms=4.5 + epoch, command=command,
    )  # fmt: skip
    if epoch == 3:
        outcome.result, outcome.reason = ly.COMMAND_RESULT_REJECTED, "gate"
        outcome.gate_verdicts["SEED_GATE_G2_STABILITY"] = False
        outcome.late_commands.add(command_id=derive_id("late"), event_id=derive_id("late", 1), epoch=2, reason="late")
    yield Told("tolaria", run_id, outcome, event_id=derive_id(run_id, "outcome", epoch), causation_id=state_id)
    yield Told("tolaria", "tolaria", telemetry(run_id, epoch))


def telemetry(run_id: str, epoch: int) -> ly.TelemetryPacket:
    """Return what an epoch took: a metric, an event, two spans, one in the other."""
    point = ly.MetricPoint(name="tolaria.epoch_seconds", value=1.25 + epoch / 8, unit="s", attributes={"run": run_id})
    event = ly.TelemetryEvent(
        event_id=derive_id(run_id, "told", epoch), description="epoch finished", level=ly.TELEMETRY_LEVEL_INFO,
        attributes={"epoch": str(epoch)},
    )  # fmt: skip
    outer = ly.TraceSpan(span_id=f"{epoch:015x}a", name="epoch", attributes={"run": run_id})
    inner = ly.TraceSpan(span_id=f"{epoch:015x}b", parent_span_id=outer.span_id, name="validation")
    for span, seconds in ((outer, 2), (inner, 1)):
        span.start_time.FromSeconds(1_790_000_000 + 10 * epoch)
        span.end_time.FromSeconds(1_790_000_000 + 10 * epoch + seconds)
    return ly.TelemetryPacket(
        packet_id=derive_id(run_id, "telemetry", epoch), source_subsystem="tolaria", level=ly.TELEMETRY_LEVEL_INFO,
        metrics=[point], events=[event], spans=[outer, inner],
        system_health=ly.SystemHealth(status=ly.HEALTH_STATUS_HEALTHY, summary="trains", indicators={"gpu": "none"}),
    )  # fmt: skip


def packet(
    run_id: str, task: str, epoch: int, *, stage: ly.SeedLifecycleStage, seed: int, attempt: int = 1
) -> ly.SystemStatePacket:
    """Return an epoch's packet; figures that floating point holds exactly."""
    grown = ly.SeedState(
        seed_id="hidden.1", stage=stage, learning_rate=0.01, layer_depth=1, metrics={"host_loss": 1.5, "loss": 1.25},
        age_epochs=epoch, slot="hidden", blueprint_id="BP003", alpha=epoch / 8,
    )  # fmt: skip
    if epoch > 1:
        grown.gradient_norm = epoch / 4
    return ly.SystemStatePacket(
        training_run_id=run_id, attempt=attempt, current_epoch=epoch, epochs_planned=_EPOCHS, global_step=63 * epoch,
        training_loss=2.25 / epoch, validation_loss=2.0 / epoch, validation_accuracy=epoch / 8,
        training_metrics={"gradient_norm": 1.5, "samples_per_second": 40_000.0}, seed_states=[grown],
        slots=[ly.SlotState(slot="hidden", module="hidden.1", layout="vector", in_shape=[64], out_shape=[64])],
        hardware_context=ly.HardwareContext(device_type="cpu", total_memory_gb=8), weights_digest=f"{epoch:064x}",
        policy="heuristic", parameters=4_362, multiply_adds=10_000_000 * epoch, multiply_adds_per_sample=6_144,
        task=task, host="mlp", seed=seed,
    )  # fmt: skip


def order(run_id: str, epoch: int) -> ly.AdaptationCommand:
    """Return the command of an epoch: each kind of payload has its own."""
    decision_id = derive_id(run_id, "decision", epoch)
    command = ly.AdaptationCommand(
        version=1, command_id=derive_id(run_id, "command", epoch), training_run_id=run_id, epoch=epoch,
        issued_by="tamiyo", decision_id=decision_id, annotations={"policy": "heuristic"},
        command_type=ly.COMMAND_CONTINUE,
    )  # fmt: skip
    if epoch == 2:
        command.command_type = ly.COMMAND_SEED
        command.seed_operation.CopyFrom(
            ly.CommandSeedOperation(
                operation=ly.SEED_OP_GERMINATE, blueprint_id="BP003", parameters={"rank": 8}, slot="hidden"
            )
        )
    if epoch == 3:
        command.command_type = ly.COMMAND_OPTIMIZER
        command.optimizer_adjustment.hyperparameters["learning_rate"] = 0.005
    if epoch == 4:
        command.command_type = ly.COMMAND_ROLLBACK
        command.rollback_payload.update({"to_epoch": 2})
    if epoch == 5:
        command.command_type = ly.COMMAND_CIRCUIT_BREAKER
        command.circuit_breaker.desired_state = ly.CIRCUIT_STATE_CLOSED
    return command


def seed_moves(run_id: str, epoch: int, before: ly.SeedLifecycleStage, after: ly.SeedLifecycleStage) -> Iterator[Told]:
    """Yield a gate, the move behind it, and once a move that is refused."""
    gate_id, command_id = derive_id(run_id, "gate", epoch), derive_id(run_id, "command", epoch)
    check = ly.GateCheck(name="loss is finite", value=1, bound=1, comparison="==", passed=True)
    gate = ly.GateEvaluated(
        run_id=run_id, attempt=1, epoch=epoch, seed_id="hidden.1", gate=ly.SEED_GATE_G0_SANITY, passed=True,
        checks=[check], command_id=command_id,
    )  # fmt: skip
    yield Told("kasmina", run_id, gate, event_id=gate_id)
    moved = ly.SeedStageChanged(
        run_id=run_id, attempt=1, epoch=epoch, seed_id="hidden.1", slot="hidden", blueprint_id="BP003",
        from_stage=before, to_stage=after, reason="gates passed", command_id=command_id, alpha=epoch / 8,
        gate_event_ids=[gate_id], metrics={"loss": 1.25},
    )  # fmt: skip
    yield Told("kasmina", run_id, moved, causation_id=gate_id)
    if epoch == 3:
        refused = ly.SeedMoveRejected(
            run_id=run_id, attempt=1, epoch=epoch, seed_id="hidden.1", from_stage=after,
            to_stage=ly.SEED_STAGE_FOSSILIZED, reason="no such move", command_id=command_id,
        )  # fmt: skip
        yield Told("kasmina", run_id, refused)


def report(run_id: str, epoch: int) -> ly.FieldReport:
    """Return what a decision turned out to be worth."""
    found = ly.FieldReport(
        version=1, report_id=derive_id(run_id, "report", epoch), decision_id=derive_id(run_id, "decision", epoch),
        command_id=derive_id(run_id, "command", epoch), training_run_id=run_id, episode_id=run_id, epoch=epoch,
        seed_id="hidden.1", blueprint_id="BP003", outcome=ly.FIELD_REPORT_OUTCOME_SUCCESS,
        command_result=ly.COMMAND_RESULT_APPLIED, command_type=ly.COMMAND_SEED,
        seed_operation=ly.SEED_OP_GERMINATE, metrics={"loss_before": 1.0, "loss_after": 0.5},
        reward_parts={"validation_gain": 0.5, "parameter_rent": -0.125}, observation_window_begin_epoch=epoch,
        observation_window_epochs=2, tamiyo_policy_version="1",
        follow_up_actions=[ly.MitigationAction(action_type="watch", rationale="the gain is small")],
    )  # fmt: skip
    if epoch == 2:
        found.counterfactual_gain = 0.25
    return found


def policy() -> Iterator[Told]:
    """Yield a learned policy: candidate, verdict, promotion, and its end."""
    name, version, digest = "tamiyo", "golden-1", derive_id("policy") * 2
    update = ly.PolicyUpdate(
        version=1, policy_id=name, training_run_id="simic-golden", tamiyo_policy_version=version, payload=b"weights",
        policy_digest=digest, algorithm="ppo_vtrace", hyperparameters={"clip": 0.25}, scores={"value_loss": 0.5},
        training_data=[ly.OffsetRange(topic="field-reports", partition=0, first_offset=0, end_offset=2)],
        seed=7, episodes=1, transitions=_EPOCHS,
    )  # fmt: skip
    yield Told("simic", name, update)
    yield Told(
        "simic",
        name,
        ly.PolicyValidated(policy_id=name, tamiyo_policy_version=version, policy_digest=digest, passed=True),
    )
    promoted = ly.PolicyPromoted(policy_id=name, tamiyo_policy_version=version, policy_digest=digest)
    yield Told("cli", name, promoted)
    back = ly.PolicyRolledBack(policy_id=name, tamiyo_policy_version=version, policy_digest=digest)
    yield Told("cli", name, back)


def lost_run(run_id: str) -> Iterator[Told]:
    """Yield a run whose first worker dies, and whose second fails."""
    request = ly.TrainingRunRequested(run_id=run_id, task="digits", host="mlp", policy="noop", epochs=2, seed=11)
    yield Told("grow", run_id, request, event_id=derive_id(run_id, "request"))
    yield from begun(run_id, attempt=1)
    yield Told(
        "tolaria", run_id, packet(run_id, "digits", 1, stage=ly.SEED_STAGE_DORMANT, seed=11),
        event_id=derive_id(run_id, "state", 1),
    )  # fmt: skip
    lost = ly.TrainingRunFailed(run_id=run_id, attempt=1, reason="worker_lost", epochs=1)
    yield Told("weatherlight", run_id, lost)
    yield from begun(run_id, attempt=2)
    diverged = ly.TrainingRunFailed(
        run_id=run_id, attempt=2, reason="diverged", detail="the loss is not finite", epochs=1
    )
    yield Told("tolaria", run_id, diverged)


def operations() -> Iterator[Told]:
    """Yield what keeps the log honest, and what was set aside."""
    place = {"topic": "runs", "partition": 3, "offset": 17}
    letter, key = derive_id("letter"), "runs-3-17"
    dead = ly.DeadLetter(
        **place, key=b"run-golden-b", reason=ly.DEAD_LETTER_REASON_HANDLER_FAILED, detail="ValueError: for example",
        value_digest=derive_id("value") * 2, attempts=3, consumer_group="esper.tamiyo", record_type="x", value_bytes=9,
    )  # fmt: skip
    yield Told("tamiyo", key, dead, event_id=letter)
    words = {**place, "letter_id": letter, "consumer_group": "esper.tamiyo"}
    yield Told("cli", key, ly.Redriven(**words, note="again"), causation_id=letter)
    yield Told("cli", key, ly.Discarded(**words, note="never mind"), causation_id=letter)
    yield Told("tolaria", "tolaria", ly.EmergencySignal(level=ly.EMERGENCY_LEVEL_NOTICE, reason="over", origin="t-0"))
    ours = fingerprint(SECRET.encode())
    rotated = ly.KeyRotated(key_id=ours, previous_key_id="0" * 16, algorithm=ly.KEY_ALGORITHM_HMAC_SHA256)
    yield Told("cli", ours, rotated)
    yield Told("cli", "0" * 16, ly.KeyRevoked(key_id="0" * 16, reason="it signed nothing here"))
    yield Told("tamiyo", "tamiyo:gone", ly.ProducerStarted(member="tamiyo-0", predecessor_id="tamiyo:gone"))
