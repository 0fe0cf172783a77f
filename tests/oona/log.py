"""Helpers of Oona's tests: raw records past every safeguard, and waiting with a deadline."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from confluent_kafka import KafkaError, Message, Producer

from esper.core.clock import Deadline
from esper.core.ids import new_event_id, new_run_id
from esper.leyline import SIGNATURE_HEADER, TYPE_HEADER, Envelope, EventMessage, KeyRing, Record, type_of
from esper.leyline import messages as ly
from esper.oona import Consumer, Event, Fabric

Headers = list[tuple[str, str | bytes | None]]


def packet(run_id: str, epoch: int) -> ly.SystemStatePacket:
    """Return a state packet of a run."""
    return ly.SystemStatePacket(training_run_id=run_id, current_epoch=epoch, validation_loss=1.0 / (1 + epoch))


def fresh_group() -> str:
    """Return a group name that no test used before."""
    return f"test.{new_event_id()[:12]}"


def append(fabric: Fabric, records: Iterable[Record]) -> list[Record]:
    """Append raw records, as anybody with access to the broker could; return them with their real offsets."""
    wanted = list(records)
    placed: list[Record] = list(wanted)
    producer = Producer({"bootstrap.servers": fabric.bootstrap, "message.max.bytes": 20_000_000, "linger.ms": 0})

    def delivered(index: int) -> Callable[[KafkaError | None, Message], None]:
        def callback(error: KafkaError | None, message: Message) -> None:
            assert error is None, error
            placed[index] = replace(wanted[index], offset=message.offset() or 0, append_time_ms=message.timestamp()[1])

        return callback

    for index, record in enumerate(wanted):
        headers: Headers = list(record.headers)
        producer.produce(
            record.topic,
            record.value,
            record.key,
            record.partition,
            on_delivery=delivered(index),
            headers=headers or None,
        )
    assert producer.flush(30) == 0
    return placed


def signed_record(
    fabric: Fabric,
    message: EventMessage,
    *,
    key: str,
    source: str,
    topic: str | None = None,
    keyring: KeyRing | None = None,
    value: bytes | None = None,
    type_name: str | None = None,
    **meta: object,
) -> Record:
    """Return a record signed like a publisher's, with whatever is wrong with it given by the arguments."""
    stated = type_name or type_of(message)
    place = topic or fabric.topics.topic_of(type_of(message)).name
    fields = {
        "event_id": new_event_id(),
        "type": stated,
        "source": source,
        "subject": key,
        "schema_version": 1,
        "correlation_id": key,
        "producer_id": f"{source}:{new_event_id()[:16]}",
        "sequence": 1,
        **meta,
    }
    message.meta.CopyFrom(ly.EventMeta(**fields))  # type: ignore[arg-type]  # names are checked by protobuf
    content = message.SerializeToString(deterministic=True) if value is None else value  # type: ignore[attr-defined]
    partition = fabric.partition_of(place, key)
    signature = (keyring or fabric.keyring).sign(Envelope(place, partition, key, stated, content))
    headers = ((SIGNATURE_HEADER, signature), (TYPE_HEADER, stated.encode()))
    return Record(place, partition, -1, key.encode(), content, headers)


def read_run(fabric: Fabric, topic: str, run_id: str) -> list[Event]:
    """Return all events of one run in a topic."""
    with fabric.reader({(topic, fabric.partition_of(topic, run_id)): "begin"}) as reader:
        return [event for event in reader.read_to_end() if event.meta.subject == run_id]


def poll_until(consumer: Consumer, condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    """Poll until `condition` holds; fail at the deadline."""
    deadline = Deadline(seconds)
    while not condition():
        assert not deadline.expired, f"not within {seconds} seconds: {consumer.metrics()}"
        consumer.poll(0.05)


def poll_to_end(consumer: Consumer, fabric: Fabric, *, seconds: float = 30.0) -> None:
    """Poll until the consumer has passed the ends that its partitions have now."""
    poll_until(consumer, lambda: bool(consumer.assignment()), seconds=seconds)
    ends = fabric.cluster.watermarks(consumer.assignment())
    poll_until(
        consumer,
        lambda: all(consumer.positions().get(place, 0) >= end for place, (_, end) in ends.items()),
        seconds=seconds,
    )


def run_on_partition(fabric: Fabric, topic: str, partition: int) -> str:
    """Return a fresh run id whose events stand on a given partition of a topic."""
    while True:  # ends after as many tries as the topic has partitions, on average
        run_id = new_run_id()
        if fabric.partition_of(topic, run_id) == partition:
            return run_id
