"""A recorded history of decisions and field reports, signed and chained as publishers do, put into the log at speed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from confluent_kafka import Producer

from esper.core.ids import derive_id
from esper.leyline import SIGNATURE_HEADER, TYPE_HEADER, Envelope, EventMessage, mac_of, type_of
from esper.leyline import messages as ly
from esper.oona import Fabric, partition_for

#: The topics that are recorded, and the one source that may write them.
TOPICS: Final = ("decisions", "field-reports")
SOURCE: Final = "tamiyo"
_RUNS: Final = 256
_HEADS: Final = (
    ("operation", ("continue", "germinate", "start_training", "fossilize", "cull")),
    ("slot", ("blocks.1", "blocks.2")),
    ("blueprint", ("BP001", "BP002", "BP003", "BP004")),
)
_OBSERVED: Final = ("epoch", "train_loss", "val_loss", "val_accuracy", "seeds", "plateau", "gap", "budget")


def history(count: int, *, first: int = 0) -> Iterator[tuple[str, EventMessage]]:
    """Yield `count` events with their keys, from the `first` on: of each epoch its decision and its report."""
    for number in range(first // 2, (first + count) // 2):
        run, epoch = f"run-{number % _RUNS:012x}", 1 + number // _RUNS
        yield run, _decision(run, epoch)
        yield run, _report(run, epoch)


def _decision(run: str, epoch: int) -> ly.DecisionMade:
    command = ly.AdaptationCommand(
        command_id=derive_id(run, "command", epoch),
        command_type=ly.COMMAND_SEED,
        training_run_id=run,
        epoch=epoch,
        seed_operation=ly.CommandSeedOperation(
            operation=ly.SEED_OP_GERMINATE, blueprint_id="BP003", slot="blocks.1", parameters={"rank": 8.0}
        ),
    )
    return ly.DecisionMade(
        run_id=run,
        attempt=1,
        epoch=epoch,
        state_event_id=derive_id(run, "state", epoch),
        policy="heuristic",
        policy_version="heuristic-1",
        policy_digest="5e" * 32,
        observation_schema="v1",
        observation_names=_OBSERVED,
        observation=[epoch, 2.3 / epoch, 2.4 / epoch, 1 - 1 / epoch, 2.0, 0.0, 0.1, 0.5],
        heads=[
            ly.DecisionHead(
                name=name,
                actions=actions,
                mask=[True] * len(actions),
                probabilities=[1 / len(actions)] * len(actions),
                chosen=epoch % len(actions),
                log_probability=-1.5,
            )
            for name, actions in _HEADS
        ],
        log_probability=-4.5,
        rng_seed=7,
        rng_counter=epoch,
        proposed=command,
        command_id=command.command_id,
        reasons=["plateau"],
    )


def _report(run: str, epoch: int) -> ly.FieldReport:
    return ly.FieldReport(
        version=1,
        report_id=derive_id(run, "report", epoch),
        decision_id=derive_id(run, "decision", epoch),
        command_id=derive_id(run, "command", epoch),
        training_run_id=run,
        episode_id=run,
        epoch=epoch,
        seed_id="blocks.1-seed-1",
        blueprint_id="BP003",
        outcome=ly.FIELD_REPORT_OUTCOME_SUCCESS,
        command_result=ly.COMMAND_RESULT_APPLIED,
        command_type=ly.COMMAND_SEED,
        seed_operation=ly.SEED_OP_GERMINATE,
        metrics={"validation_loss": 2.4 / epoch, "validation_accuracy": 1 - 1 / epoch, "latency_ms": 2.5},
        reward_parts={"validation_gain": 0.1, "parameter_rent": -0.02, "compute": -0.01},
        observation_window_begin_epoch=epoch,
        observation_window_epochs=1,
        tamiyo_policy_version="heuristic-1",
        next_state_event_id=derive_id(run, "state", epoch + 1),
    )


def record(fabric: Fabric, count: int, *, first: int = 0) -> int:
    """Append `count` events of a history and return their bytes; raises RuntimeError unless all are acknowledged.

    One producer signs and chains them as `Publisher` does, without its waits and breakers: what is read is measured,
    not what is written.
    """
    producer = Producer(
        {"bootstrap.servers": fabric.bootstrap, "acks": "all", "enable.idempotence": True, "linger.ms": 50}
    )
    producer_id, size = derive_id("bench", "recorder", first), 0
    chains: dict[tuple[str, int], tuple[int, bytes]] = {}
    for number, (key, message) in enumerate(history(count, first=first), first):
        spec = fabric.topics.topic_of(type_of(message))
        place = (spec.name, partition_for(key, spec.partitions))
        sequence, previous = chains.get(place, (0, b""))
        _fill(message.meta, message, key, producer_id, sequence + 1, previous, number)
        value = message.SerializeToString(deterministic=True)
        signature = fabric.keyring.sign(Envelope(*place, key, message.meta.type, value), source=SOURCE)
        chains[place] = (sequence + 1, mac_of(signature))
        size += len(value)
        headers: list[tuple[str, str | bytes | None]] = [
            (SIGNATURE_HEADER, signature),
            (TYPE_HEADER, message.meta.type.encode()),
        ]
        while True:  # ends when the queue has room
            try:
                producer.produce(place[0], value, key.encode(), place[1], headers=headers)
                break
            except BufferError:
                producer.poll(0.01)
    left = producer.flush()
    if left:
        raise RuntimeError(f"{left} records were not acknowledged")
    return size


def _fill(
    meta: ly.EventMeta, message: EventMessage, key: str, producer_id: str, sequence: int, previous: bytes, number: int
) -> None:
    meta.event_id = derive_id("recorded", number)
    meta.type = type_of(message)
    meta.source = SOURCE
    meta.time.FromMilliseconds(1_700_000_000_000 + number)
    meta.subject = meta.correlation_id = key
    meta.schema_version = 1
    meta.producer_id, meta.sequence, meta.previous_mac = producer_id, sequence, previous
    meta.priority = ly.MESSAGE_PRIORITY_NORMAL
