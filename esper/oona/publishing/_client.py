"""A typed call for every event of the contract: the key comes from the message, so that nobody can mis-key it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Self, TypedDict, Unpack, cast

from google.protobuf.message import Message

from esper.core.errors import UsageError
from esper.leyline import EventMessage, short_name, type_of
from esper.leyline import messages as ly
from esper.oona.publishing._pending import Pending, Receipt
from esper.oona.publishing._publisher import Publisher

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric

#: Key of the checkpoints, which speak of the whole log.
LOG_KEY: Final = "log"


class PublishOptions(TypedDict, total=False):
    """What a call may say beside the message; as `Publisher.publish` has them."""

    causation_id: str
    correlation_id: str
    event_id: str
    priority: ly.MessagePriority


def key_of(message: EventMessage, *, source: str) -> str:
    """Return the record key of a message that `source` writes; pure.

    A run, a blueprint, a kernel, a policy, a signing key; `<topic>-<partition>-<offset>` for what speaks of a record;
    the source for telemetry and emergencies; the producer that ended for `ProducerStarted`; `log` for its checkpoints.

    Raises:
        UsageError: the field that the key comes from is empty, or names another source than the writer.
    """
    find = _KEYS.get(type(cast("Message", message)))
    if find is None:
        raise UsageError(
            f"{short_name(type_of(message))} cannot be published by its own key",
            cause="its contract is not Esper's, so that only its writer knows what it is keyed by",
            next_step="Call `Publisher.publish` with the key",
        )
    key = find(message, source)
    if not key:
        raise UsageError(
            f"{short_name(type_of(message))} cannot be published",
            cause="the field that gives its key is empty",
            next_step="Fill in the run, blueprint, kernel, key or record that it is about",
        )
    return key


class OonaClient:
    """Publishes every kind of event as one source.

    Each call returns once the broker has acknowledged the event and raises what `Publisher.publish` raises, and
    `UsageError` where the message lacks what its key comes from. Telemetry alone is not waited for: its call
    returns the `Pending` of `Publisher.submit`. Thread-safe.
    """

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher

    @classmethod
    def open(cls, fabric: Fabric, source: str) -> Self:
        """Return a client with a publisher of its own, which is closed with the fabric."""
        return cls(fabric.publisher(source))

    def publish(self, message: EventMessage, **options: Unpack[PublishOptions]) -> Receipt:
        """Append any event under its own key."""
        return self.publisher.publish(message, key=key_of(message, source=self.publisher.source), **options)

    # Runs

    def publish_training_run_requested(
        self, message: ly.TrainingRunRequested, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """Ask for a run."""
        return self.publish(message, **options)

    def publish_training_run_claimed(
        self, message: ly.TrainingRunClaimed, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """Take a run."""
        return self.publish(message, **options)

    def publish_training_run_started(
        self, message: ly.TrainingRunStarted, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """Say that a run began, and on what."""
        return self.publish(message, **options)

    def publish_training_run_finished(
        self, message: ly.TrainingRunFinished, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """Say how a run ended."""
        return self.publish(message, **options)

    def publish_training_run_failed(self, message: ly.TrainingRunFailed, **options: Unpack[PublishOptions]) -> Receipt:
        """Say that a run did not come to its end."""
        return self.publish(message, **options)

    def publish_checkpoint_saved(self, message: ly.CheckpointSaved, **options: Unpack[PublishOptions]) -> Receipt:
        """Name a checkpoint."""
        return self.publish(message, **options)

    def publish_run_rolled_back(self, message: ly.RunRolledBack, **options: Unpack[PublishOptions]) -> Receipt:
        """Say that a run went back to a checkpoint."""
        return self.publish(message, **options)

    # The control loop

    def publish_state(self, message: ly.SystemStatePacket, **options: Unpack[PublishOptions]) -> Receipt:
        """Publish the snapshot of an epoch."""
        return self.publish(message, **options)

    def publish_decision(self, message: ly.DecisionMade, **options: Unpack[PublishOptions]) -> Receipt:
        """Publish a decision with all that learning from it needs."""
        return self.publish(message, **options)

    def publish_adaptation_command(self, message: ly.AdaptationCommand, **options: Unpack[PublishOptions]) -> Receipt:
        """Order something of a run."""
        return self.publish(message, **options)

    def publish_command_outcome(self, message: ly.CommandOutcome, **options: Unpack[PublishOptions]) -> Receipt:
        """Say what became of an epoch's command."""
        return self.publish(message, **options)

    def publish_field_report(self, message: ly.FieldReport, **options: Unpack[PublishOptions]) -> Receipt:
        """Publish what a decision turned out to be worth."""
        return self.publish(message, **options)

    # Seeds

    def publish_kernel_quarantined(self, message: ly.KernelQuarantined, **options: Unpack[PublishOptions]) -> Receipt:
        """Say how a kernel's time in quarantine ended."""
        return self.publish(message, **options)

    def publish_seed_tuned(self, message: ly.SeedTuned, **options: Unpack[PublishOptions]) -> Receipt:
        """Say how a seed learns from now on."""
        return self.publish(message, **options)

    def publish_gate_evaluated(self, message: ly.GateEvaluated, **options: Unpack[PublishOptions]) -> Receipt:
        """Publish a gate's measurement."""
        return self.publish(message, **options)

    def publish_seed_stage_changed(self, message: ly.SeedStageChanged, **options: Unpack[PublishOptions]) -> Receipt:
        """Publish a move of a seed."""
        return self.publish(message, **options)

    def publish_seed_move_rejected(self, message: ly.SeedMoveRejected, **options: Unpack[PublishOptions]) -> Receipt:
        """Publish a move that was refused."""
        return self.publish(message, **options)

    # Blueprints and kernels

    def publish_blueprint_registered(
        self, message: ly.BlueprintRegistered, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """Publish what may be grafted."""
        return self.publish(message, **options)

    def publish_blueprint_approved(self, message: ly.BlueprintApproved, **options: Unpack[PublishOptions]) -> Receipt:
        """Vouch for a blueprint in its present form."""
        return self.publish(message, **options)

    def publish_blueprint_withdrawn(self, message: ly.BlueprintWithdrawn, **options: Unpack[PublishOptions]) -> Receipt:
        """Let nobody graft a blueprint any more."""
        return self.publish(message, **options)

    def publish_kernel_part_compiled(
        self, message: ly.KernelPartCompiled, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """Vouch for a compiled part of a kernel."""
        return self.publish(message, **options)

    def publish_benchmark_report(self, message: ly.BenchmarkReport, **options: Unpack[PublishOptions]) -> Receipt:
        """Say how fast a kernel is."""
        return self.publish(message, **options)

    def publish_kernel_integrity_failed(
        self, message: ly.KernelIntegrityFailed, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """Say that stored bytes were found wrong."""
        return self.publish(message, **options)

    def publish_kernel_evicted(self, message: ly.KernelEvicted, **options: Unpack[PublishOptions]) -> Receipt:
        """Say that stored bytes were removed."""
        return self.publish(message, **options)

    def publish_kernel_prefetch_request(
        self, message: ly.KernelPrefetchRequest, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """Ask for a kernel."""
        return self.publish(message, **options)

    def publish_kernel_artifact_ready(
        self, message: ly.KernelArtifactReady, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """Answer that a kernel is there."""
        return self.publish(message, **options)

    def publish_kernel_artifact_error(
        self, message: ly.KernelArtifactError, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """Answer that a kernel cannot be had."""
        return self.publish(message, **options)

    def publish_kernel_catalog_update(
        self, message: ly.KernelCatalogUpdate, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """Enter a kernel into the catalogue."""
        return self.publish(message, **options)

    def publish_compile_requested(self, message: ly.CompileRequested, **options: Unpack[PublishOptions]) -> Receipt:
        """Ask the forge for a kernel."""
        return self.publish(message, **options)

    def publish_compile_started(self, message: ly.CompileStarted, **options: Unpack[PublishOptions]) -> Receipt:
        """Say that the forge began."""
        return self.publish(message, **options)

    def publish_compile_finished(self, message: ly.CompileFinished, **options: Unpack[PublishOptions]) -> Receipt:
        """Say that the forge made it."""
        return self.publish(message, **options)

    def publish_compile_failed(self, message: ly.CompileFailed, **options: Unpack[PublishOptions]) -> Receipt:
        """Say that the forge failed."""
        return self.publish(message, **options)

    # Policies

    def publish_policy_update(self, message: ly.PolicyUpdate, **options: Unpack[PublishOptions]) -> Receipt:
        """Publish a candidate with its pedigree and its weights."""
        return self.publish(message, **options)

    def publish_policy_validated(self, message: ly.PolicyValidated, **options: Unpack[PublishOptions]) -> Receipt:
        """Say what the gates before a promotion measured."""
        return self.publish(message, **options)

    def publish_policy_promoted(self, message: ly.PolicyPromoted, **options: Unpack[PublishOptions]) -> Receipt:
        """Say which version decides from now on."""
        return self.publish(message, **options)

    def publish_policy_rolled_back(self, message: ly.PolicyRolledBack, **options: Unpack[PublishOptions]) -> Receipt:
        """Give a promoted version up for another."""
        return self.publish(message, **options)

    # Safety and operations

    def publish_emergency_signal(self, message: ly.EmergencySignal, **options: Unpack[PublishOptions]) -> Receipt:
        """Say what must be heard first; CRITICAL unless the call says otherwise."""
        options.setdefault("priority", ly.MESSAGE_PRIORITY_CRITICAL)
        return self.publish(message, **options)

    def publish_dead_letter(self, message: ly.DeadLetter, **options: Unpack[PublishOptions]) -> Receipt:
        """Set a record aside."""
        return self.publish(message, **options)

    def publish_redriven(self, message: ly.Redriven, **options: Unpack[PublishOptions]) -> Receipt:
        """Have a parked record handled again."""
        return self.publish(message, **options)

    def publish_discarded(self, message: ly.Discarded, **options: Unpack[PublishOptions]) -> Receipt:
        """Give a parked record up."""
        return self.publish(message, **options)

    def publish_producer_started(self, message: ly.ProducerStarted, **options: Unpack[PublishOptions]) -> Receipt:
        """Say which producer this one follows."""
        return self.publish(message, **options)

    def publish_log_checkpoint(self, message: ly.LogCheckpoint, **options: Unpack[PublishOptions]) -> Receipt:
        """Append a checkpoint of the log."""
        return self.publish(message, **options)

    def publish_log_restored(self, message: ly.LogRestored, **options: Unpack[PublishOptions]) -> Receipt:
        """Say that this cluster's topics go on where another one's ended."""
        return self.publish(message, **options)

    def publish_key_rotated(self, message: ly.KeyRotated, **options: Unpack[PublishOptions]) -> Receipt:
        """Name the key that signs from now on."""
        return self.publish(message, **options)

    def publish_key_revoked(self, message: ly.KeyRevoked, **options: Unpack[PublishOptions]) -> Receipt:
        """Say from where on a key is believed no more."""
        return self.publish(message, **options)

    # Telemetry

    def publish_telemetry(self, message: ly.TelemetryPacket, **options: Unpack[PublishOptions]) -> Pending:
        """Submit metrics, spans and health; nobody waits for them."""
        return self.publisher.submit(message, key=key_of(message, source=self.publisher.source), **options)


def _field(name: str) -> Callable[[Any, str], str]:
    """Return a key that is the value of one field."""
    return lambda message, _: str(getattr(message, name))


def _record(message: Any, _: str) -> str:  # noqa: ANN401 - any message that names a record
    return f"{message.topic}-{message.partition}-{message.offset}" if message.topic else ""


def _of_source(message: ly.TelemetryPacket, source: str) -> str:
    if message.source_subsystem not in ("", source):
        raise UsageError(
            f"telemetry of {message.source_subsystem} cannot be published by {source}",
            cause="each subsystem's telemetry stands under its own key",
            next_step="Leave source_subsystem empty or use the subsystem's own client",
        )
    return source


_RUN: Final = _field("run_id")
_TRAINING_RUN: Final = _field("training_run_id")
_KERNEL: Final = _field("kernel_id")
_KEY: Final = _field("key_id")
_POLICY: Final = _field("policy_id")

_KEYS: Final[dict[type[Message], Callable[[Any, str], str]]] = {
    ly.AdaptationCommand: _TRAINING_RUN,
    ly.BenchmarkReport: lambda message, _: message.benchmark.kernel_id,
    ly.BlueprintApproved: _field("blueprint_id"),
    ly.BlueprintRegistered: lambda message, _: message.descriptor.blueprint_id,
    ly.BlueprintWithdrawn: _field("blueprint_id"),
    ly.CheckpointSaved: _RUN,
    ly.CommandOutcome: _RUN,
    ly.CompileFailed: _KERNEL,
    ly.CompileFinished: _KERNEL,
    ly.CompileRequested: _KERNEL,
    ly.CompileStarted: _KERNEL,
    ly.DeadLetter: _record,
    ly.DecisionMade: _RUN,
    ly.Discarded: _record,
    ly.EmergencySignal: lambda _, source: source,
    ly.FieldReport: _TRAINING_RUN,
    ly.GateEvaluated: _RUN,
    ly.KernelArtifactError: _KERNEL,
    ly.KernelArtifactReady: _KERNEL,
    ly.KernelCatalogUpdate: _KERNEL,
    ly.KernelEvicted: _KERNEL,
    ly.KernelIntegrityFailed: _KERNEL,
    ly.KernelPartCompiled: _KERNEL,
    ly.KernelPrefetchRequest: _KERNEL,
    ly.KernelQuarantined: _TRAINING_RUN,
    ly.KeyRevoked: _KEY,
    ly.KeyRotated: _KEY,
    ly.LogCheckpoint: lambda _, __: LOG_KEY,
    ly.LogRestored: lambda _, __: LOG_KEY,
    ly.PolicyPromoted: _POLICY,
    ly.PolicyRolledBack: _POLICY,
    ly.PolicyUpdate: _POLICY,
    ly.PolicyValidated: _POLICY,
    ly.ProducerStarted: _field("predecessor_id"),
    ly.Redriven: _record,
    ly.RunRolledBack: _RUN,
    ly.SeedMoveRejected: _RUN,
    ly.SeedTuned: _RUN,
    ly.SeedStageChanged: _RUN,
    ly.SystemStatePacket: _TRAINING_RUN,
    ly.TelemetryPacket: _of_source,
    ly.TrainingRunClaimed: _RUN,
    ly.TrainingRunFailed: _RUN,
    ly.TrainingRunFinished: _RUN,
    ly.TrainingRunRequested: _RUN,
    ly.TrainingRunStarted: _RUN,
}
