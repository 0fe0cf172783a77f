"""A log in memory that is signed like the real one, and what tests write into it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from esper.core.ids import derive_id
from esper.core.settings import Settings
from esper.leyline import (
    SIGNATURE_HEADER,
    TYPE_HEADER,
    Envelope,
    EventMessage,
    KeyRing,
    Record,
    RecordColumns,
    short_name,
    type_of,
)
from esper.leyline import messages as ly
from esper.oona import Position, TopicCatalog, partition_for
from esper.projection.columnar import Batch
from esper.projection.intake._admission import Admission
from esper.projection.records._source import MemorySource

SECRET = b"a secret of tests, long enough to sign with"
TOPICS = TopicCatalog.load(Settings(_env_file=None))


class Appends(Protocol):
    """Takes events: a `Log`, or a system with a broker (`tests.projection.system`)."""

    def append(self, message: EventMessage, *, key: str, event_id: str | None = None) -> object:
        """Append an event."""


@dataclass
class Log:
    """Appends signed records to a `MemorySource` over all topics."""

    keyring: KeyRing = field(default_factory=lambda: KeyRing.from_secrets(SECRET))
    source: MemorySource = field(default_factory=lambda: MemorySource({spec.name: spec.partitions for spec in TOPICS}))
    _ends: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    _sequences: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))

    def sign(
        self,
        message: EventMessage,
        *,
        key: str,
        event_id: str | None = None,
        producer_id: str = "test:1",
        sequence: int | None = None,
    ) -> Record:
        """Fill the message's meta as a publisher does, and return its record, not appended yet."""
        spec = TOPICS.topic_of(type_of(message))
        partition = partition_for(key, spec.partitions)
        if sequence is None:
            self._sequences[(spec.name, partition)] += 1
            sequence = self._sequences[(spec.name, partition)]
        moment = sequence % 1_000_000_000
        meta = message.meta
        meta.event_id = event_id or meta.event_id or derive_id("test", spec.name, partition, sequence)
        meta.type, meta.subject, meta.correlation_id = type_of(message), key, key
        meta.source = spec.writers[0]
        meta.schema_version, meta.producer_id, meta.sequence = 1, producer_id, sequence
        meta.time.FromNanoseconds(1_700_000_000_000_000_000 + moment)
        value = message.SerializeToString()
        envelope = Envelope(spec.name, partition, key, meta.type, value)
        headers = (
            (SIGNATURE_HEADER, self.keyring.sign(envelope, source=meta.source)),
            (TYPE_HEADER, meta.type.encode()),
        )
        return Record(spec.name, partition, -1, key.encode(), value, headers, 1_700_000_000_000 + moment)

    def append(self, message: EventMessage, *, key: str, event_id: str | None = None) -> Record:
        """Sign and append an event."""
        return self.append_raw(self.sign(message, key=key, event_id=event_id))

    def holds(self, place: Position, start: int, end: int) -> list[int]:
        """Return the offsets from `start` on and before `end` at which a partition holds a record."""
        stored = (one.offset for one in self.source.records if (one.topic, one.partition) == place)
        return sorted(offset for offset in stored if start <= offset < end)

    def append_raw(self, record: Record) -> Record:
        """Append a record as it is; it gets the next offset of its partition."""
        place = (record.topic, record.partition)
        placed = replace(record, offset=self._ends[place])
        self._ends[place] += 1
        self.source.records.append(placed)
        return placed


def one_run(log: Appends, run_id: str = "run-a", *, epochs: int = 3, seed: int = 7) -> None:
    """Append the events of a small run: every epoch with its packet, decision, command and outcome."""
    log.append(
        ly.TrainingRunRequested(
            run_id=run_id, task="digits", host="mlp", policy="heuristic", epochs=epochs, seed=seed, re_executable=True
        ),
        key=run_id,
    )
    log.append(ly.TrainingRunClaimed(run_id=run_id, attempt=1, worker="tolaria-0"), key=run_id)
    log.append(ly.TrainingRunStarted(run_id=run_id, attempt=1, worker="tolaria-0"), key=run_id)
    for epoch in range(1, epochs + 1):
        one_epoch(log, run_id, epoch)
    log.append(
        ly.SeedStageChanged(
            run_id=run_id,
            attempt=1,
            epoch=1,
            seed_id="hidden.1",
            slot="hidden",
            blueprint_id="BP003",
            from_stage=ly.SEED_STAGE_DORMANT,
            to_stage=ly.SEED_STAGE_TRAINING,
            reason="command:germinate",
        ),
        key=run_id,
    )
    log.append(
        ly.GateEvaluated(
            run_id=run_id,
            attempt=1,
            epoch=1,
            seed_id="hidden.1",
            gate=ly.SEED_GATE_G0_SANITY,
            passed=True,
            checks=[ly.GateCheck(name="finite", value=1, bound=1, comparison="==", passed=True)],
        ),
        key=run_id,
    )
    log.append(
        ly.FieldReport(
            report_id=derive_id(run_id, "report", 1),
            decision_id=derive_id(run_id, "decision", 1),
            training_run_id=run_id,
            episode_id=run_id,
            epoch=1,
            outcome=ly.FIELD_REPORT_OUTCOME_SUCCESS,
            command_result=ly.COMMAND_RESULT_APPLIED,
            reward_parts={"validation_gain": 0.5, "parameter_rent": -0.25},
        ),
        key=run_id,
    )


def one_epoch(log: Appends, run_id: str, epoch: int, *, attempt: int = 1, val_loss: float = 1.5) -> None:
    """Append one epoch's packet, decision, command and outcome."""
    state_id = derive_id(run_id, "state", epoch)
    command = ly.AdaptationCommand(
        command_id=derive_id(run_id, "command", epoch),
        command_type=ly.COMMAND_SEED,
        training_run_id=run_id,
        epoch=epoch,
        seed_operation=ly.CommandSeedOperation(operation=ly.SEED_OP_GERMINATE, blueprint_id="BP003", slot="hidden"),
    )
    log.append(
        ly.SystemStatePacket(
            training_run_id=run_id,
            attempt=attempt,
            current_epoch=epoch,
            training_loss=2.0,
            validation_loss=val_loss,
            validation_accuracy=epoch / 10,
            weights_digest=f"{epoch:064x}",
            parameters=100,
            multiply_adds=1000 * epoch,
            seed_states=[ly.SeedState(seed_id="hidden.1", stage=ly.SEED_STAGE_TRAINING, metrics={"host_loss": 1.0})],
        ),
        key=run_id,
        event_id=state_id,
    )
    log.append(
        ly.DecisionMade(
            run_id=run_id,
            attempt=attempt,
            epoch=epoch,
            state_event_id=state_id,
            policy="heuristic",
            proposed=command,
            heads=[ly.DecisionHead(name="operation", actions=["continue", "germinate"], mask=[True, True], chosen=1)],
        ),
        key=run_id,
        event_id=derive_id(run_id, "decision", epoch),
    )
    log.append(command, key=run_id, event_id=command.command_id)
    log.append(
        ly.CommandOutcome(
            run_id=run_id,
            attempt=attempt,
            epoch=epoch,
            state_event_id=state_id,
            result=ly.COMMAND_RESULT_APPLIED,
            command_id=command.command_id,
            command_type=command.command_type,
            latency_ms=2.5,
            seed_operation=command.seed_operation.operation,
            gate_verdicts={"SEED_GATE_G0_SANITY": True},
        ),
        key=run_id,
        event_id=derive_id(run_id, "outcome", epoch),
    )


def finish(log: Appends, run_id: str = "run-a", *, attempt: int = 1, epochs: int = 3) -> None:
    """Append the end of a run that went well."""
    log.append(
        ly.TrainingRunFinished(
            run_id=run_id,
            attempt=attempt,
            epochs=epochs,
            accuracy=0.75,
            loss=0.5,
            parameters=150,
            multiply_adds=9000,
            multiply_adds_per_sample=30,
            digest="f" * 64,
            seeds=[
                ly.SeedSummary(seed_id="hidden.1", slot="hidden", blueprint_id="BP003", stage=ly.SEED_STAGE_FOSSILIZED)
            ],
        ),
        key=run_id,
    )


def short_types() -> list[str]:
    """Return the short names of all event types that the topics carry."""
    return sorted(short_name(name) for spec in TOPICS for name in spec.types)


def mixed(log: Log) -> None:
    """Append what gets every disposition: three runs, a copy of one record, and one without its signature."""
    for number in range(3):
        one_run(log, f"run-{number}")
        finish(log, f"run-{number}")
    log.append_raw(log.source.records[4])
    log.append_raw(replace(log.source.records[5], headers=()))


def admitted(admission: Admission, records: Sequence[Record]) -> Batch:
    """Return the batch of these records."""
    gathering = admission.gathering()
    gathering.add(RecordColumns.of(records))
    return admission.admit(gathering)
