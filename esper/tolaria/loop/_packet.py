"""The messages of an epoch: the state packet, made of facts a repeat would give again, and its telemetry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from esper.core.ids import derive_id
from esper.core.ports import GraftController
from esper.core.stacking import MemberGrafts
from esper.leyline import messages as ly
from esper.tolaria._setup import TrainingSetup
from esper.tolaria.loop._edge import outcome_event_id, state_event_id
from esper.tolaria.loop._hardware import hardware_context
from esper.tolaria.tasks._evaluation import Evaluation

#: The brief's budget of an epoch's hook; beyond it telemetry carries a warning. It cuts nothing off.
HOOK_LATENCY_MS_ALERT: Final = 18.0
#: End of a metric's name -> its unit; other figures are counts and shares.
_UNITS: Final = {"_ms": "ms", "_bytes": "bytes", "_steps": "steps"}
_RESTING_STAGES: Final = frozenset(
    {ly.SEED_STAGE_UNKNOWN, ly.SEED_STAGE_DORMANT, ly.SEED_STAGE_CULLED, ly.SEED_STAGE_EMBARGOED}
)


@dataclass(frozen=True)
class EpochStats:
    """One epoch of training: mean loss and accuracy (0..1) over its batches as they were trained on.

    `gradient_norm` is the L2 norm of the host's gradient at the epoch's last step. `seconds` is wall time of
    the steps; it and what derives from it are evidence, and steer nothing.
    """

    epoch: int
    steps: int
    samples: int
    loss: float
    accuracy: float
    gradient_norm: float
    learning_rate: float
    seconds: float

    @property
    def latency_ms(self) -> float:
        """Wall time of the epoch's steps."""
        return self.seconds * 1000.0

    @property
    def samples_per_second(self) -> float:
        """Throughput of the epoch's steps."""
        return self.samples / self.seconds if self.seconds > 0 else 0.0


def state_packet(
    setup: TrainingSetup,
    controller: MemberGrafts,
    stats: EpochStats,
    validation: Evaluation,
    *,
    parameters: int,
    weights_digest: str,
    hardware: ly.HardwareContext | None = None,
) -> ly.SystemStatePacket:
    """Return the packet of a finished epoch.

    Apart from `meta`, `attempt` and `hardware_context`, every field is a function of the request and of
    the outcomes before it: two attempts give it alike, so a policy that reads only these can be replayed.
    `parameters` are the host's own; `weights_digest` is empty on epochs that are not hashed.
    """
    request, run_id, epoch = setup.request, setup.request.run_id, stats.epoch
    packet = ly.SystemStatePacket(
        version=1,
        training_run_id=run_id,
        experiment_name=request.experiment_name,
        attempt=setup.attempt,
        current_epoch=epoch,
        epochs_planned=setup.config.epochs,
        global_step=epoch * stats.steps,
        training_loss=stats.loss,
        validation_loss=validation.loss,
        validation_accuracy=validation.accuracy,
        training_metrics={
            "training_accuracy": stats.accuracy,
            "gradient_norm": stats.gradient_norm,
            "learning_rate": stats.learning_rate,
        },
        seed_states=controller.seed_states(),
        slots=controller.slot_states(),
        hardware_context=hardware or hardware_context(setup.config.device),
        weights_digest=weights_digest,
        policy=request.policy,
        parameters=parameters + controller.parameters(),
        multiply_adds=training_multiply_adds(setup, controller, epochs=epoch),
        multiply_adds_per_sample=setup.multiply_adds_per_sample + controller.multiply_adds_per_sample(),
        task=request.task,
        host=request.host,
        seed=setup.config.seed_at(stats.epoch),
    )
    packet.meta.event_id = state_event_id(run_id, epoch)
    packet.meta.causation_id = outcome_event_id(run_id, epoch - 1) if epoch > 1 else request.meta.event_id
    return packet


def training_multiply_adds(setup: TrainingSetup, controller: MemberGrafts, *, epochs: int) -> int:
    """Return the multiply-adds of the whole training so far: forward + 2x backward of the host, and the controller's.

    The backward counts twice the forward (Kaplan et al., 2020, section 2.1). Validation passes are not training.
    """
    return 3 * setup.multiply_adds_per_sample * len(setup.train) * epochs + controller.multiply_adds


def add_figures(telemetry: ly.TelemetryPacket, figures: Mapping[str, float], *, epoch: int, run_id: str) -> None:
    """Add what the run's controller counts, in the order of the names; a name's end says its unit."""
    attributes = {"run_id": run_id, "epoch": str(epoch)}
    for name, value in sorted(figures.items()):
        telemetry.metrics.add(name=name, value=value, unit=_unit(name), attributes=attributes)


def _unit(name: str) -> str:
    return next((unit for end, unit in _UNITS.items() if name.endswith(end)), "1")


def add_notices(telemetry: ly.TelemetryPacket, notices: Iterable[ly.TelemetryEvent]) -> None:
    """Add what the run's controller has to tell, and what the whole packet then says of the run's health.

    Its priority stands among the indicators; whoever publishes the packet gives it that one (`priority_of`).
    """
    telemetry.events.extend(notices)
    telemetry.level = max([telemetry.level, *(event.level for event in telemetry.events)])
    warned = telemetry.level >= ly.TELEMETRY_LEVEL_WARNING
    telemetry.system_health.status = ly.HEALTH_STATUS_DEGRADED if warned else ly.HEALTH_STATUS_HEALTHY
    telemetry.system_health.summary = "; ".join(event.description for event in telemetry.events) or "as planned"
    telemetry.system_health.indicators["priority"] = ly.MessagePriority.Name(priority_of(telemetry))


def controller_telemetry(
    controller: GraftController, *, run_id: str, attempt: int, epoch: int, now_ns: int
) -> ly.TelemetryPacket:
    """Return what a run's controller has to tell of an epoch, for loops that tell the rest themselves."""
    telemetry = ly.TelemetryPacket(
        packet_id=derive_id(run_id, "telemetry", attempt, epoch, "controller"),
        source_subsystem="kasmina",
        level=ly.TELEMETRY_LEVEL_INFO,
    )
    telemetry.meta.event_id = telemetry.packet_id
    telemetry.timestamp.FromNanoseconds(now_ns)
    add_figures(telemetry, controller.figures(), epoch=epoch, run_id=run_id)
    add_notices(telemetry, controller.notices())
    return telemetry


def priority_of(telemetry: ly.TelemetryPacket) -> ly.MessagePriority:
    """Return the priority to publish telemetry with: warnings are not sampled away."""
    warned = telemetry.level >= ly.TELEMETRY_LEVEL_WARNING
    return ly.MESSAGE_PRIORITY_HIGH if warned else ly.MESSAGE_PRIORITY_NORMAL


def epoch_telemetry(
    setup: TrainingSetup, stats: EpochStats, packet: ly.SystemStatePacket, *, hook_latency_ms: float, now_ns: int
) -> ly.TelemetryPacket:
    """Return the telemetry of an epoch; it warns when the hook took longer than its budget."""
    attributes = {"run_id": packet.training_run_id, "epoch": str(stats.epoch)}
    active = sum(1 for seed in packet.seed_states if seed.stage not in _RESTING_STAGES)
    figures = (
        ("tolaria.training.loss", stats.loss, "1"),
        ("tolaria.training.accuracy", stats.accuracy, "1"),
        ("tolaria.training.latency_ms", stats.latency_ms, "ms"),
        ("tolaria.training.gradient_norm", stats.gradient_norm, "1"),
        ("tolaria.training.samples_per_second", stats.samples_per_second, "1/s"),
        ("tolaria.validation.loss", packet.validation_loss, "1"),
        ("tolaria.validation.accuracy", packet.validation_accuracy, "1"),
        ("tolaria.seeds.active", float(active), "1"),
        ("tolaria.epoch_hook.latency_ms", hook_latency_ms, "ms"),
    )
    slow = hook_latency_ms > HOOK_LATENCY_MS_ALERT
    budget = setup.config.epoch_budget_seconds
    over = budget is not None and stats.seconds > budget
    telemetry = ly.TelemetryPacket(
        packet_id=derive_id(packet.training_run_id, "telemetry", setup.attempt, stats.epoch),
        source_subsystem="tolaria",
        level=ly.TELEMETRY_LEVEL_WARNING if slow or over else ly.TELEMETRY_LEVEL_INFO,
        metrics=[
            ly.MetricPoint(name=name, value=value, unit=unit, attributes=attributes) for name, value, unit in figures
        ],
    )
    telemetry.meta.event_id = telemetry.packet_id
    telemetry.timestamp.FromNanoseconds(now_ns)
    if slow:
        telemetry.events.add(
            event_id=derive_id(telemetry.packet_id, "epoch_hook_slow"),
            description=f"the epoch's hook took {hook_latency_ms:.1f} ms, its budget is {HOOK_LATENCY_MS_ALERT} ms",
            level=ly.TELEMETRY_LEVEL_WARNING,
            attributes=attributes,
        )
    if over:
        telemetry.events.add(
            event_id=derive_id(telemetry.packet_id, "epoch_over_budget"),
            description=f"the epoch's steps took {stats.seconds:.3g} s, the budget asked for is {budget:g} s",
            level=ly.TELEMETRY_LEVEL_WARNING,
            attributes=attributes,
        )
    return telemetry


def takeover_telemetry(
    run_id: str, attempt: int, *, restored: int, repeated: int, unused_checkpoints: int, now_ns: int
) -> ly.TelemetryPacket:
    """Return what a successor tells: epochs it took from a checkpoint and epochs it computed again.

    It warns where checkpoints that the log names could not be used.
    """
    attributes = {"run_id": run_id, "attempt": str(attempt)}
    figures = (
        ("tolaria.takeover.restored_epochs", restored),
        ("tolaria.takeover.repeated_epochs", repeated),
        ("tolaria.takeover.unused_checkpoints", unused_checkpoints),
    )
    level = ly.TELEMETRY_LEVEL_WARNING if unused_checkpoints else ly.TELEMETRY_LEVEL_INFO
    telemetry = ly.TelemetryPacket(
        packet_id=derive_id(run_id, "telemetry", attempt, "takeover"),
        source_subsystem="tolaria",
        level=level,
        metrics=[
            ly.MetricPoint(name=name, value=float(value), unit="1", attributes=attributes) for name, value in figures
        ],
    )
    telemetry.meta.event_id = telemetry.packet_id
    telemetry.timestamp.FromNanoseconds(now_ns)
    if unused_checkpoints:
        telemetry.events.add(
            event_id=derive_id(telemetry.packet_id, "checkpoint_unused"),
            description=f"{unused_checkpoints} checkpoints of the run are missing or damaged and were not used",
            level=level,
            attributes=attributes,
        )
    return telemetry
