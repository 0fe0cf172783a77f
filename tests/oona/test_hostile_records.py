"""Hostile records on every topic: none stops a consumer, none is applied, each is listed with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from confluent_kafka import KafkaError, Producer

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.ids import new_event_id
from esper.leyline import EVENT_TYPES, TYPE_HEADER, Record
from esper.oona import DeadLetterRow, Event, Fabric, Position, TopicSpec, list_dead_letters, show_dead_letter
from tests.oona.hostile import HOSTILE, Target, message_of
from tests.oona.log import append, fresh_group, poll_to_end, poll_until, read_run
from tests.oona.wire import append_raw


def attack(fabric: Fabric, spec: TopicSpec) -> tuple[dict[tuple[str, int, int], str], list[str]]:
    """Append every hostile kind between genuine neighbours; return what must be listed and the genuine ids."""
    key = f"run-{new_event_id()[:12]}"
    expected: dict[tuple[str, int, int], str] = {}
    genuine_ids = []
    with fabric.publisher(spec.writers[0]) as publisher:
        genuine_ids.append(publisher.publish(message_of(spec), key=key).event_id)
        (first,) = read_run(fabric, spec.name, key)
        target = Target(fabric, spec, first.record, key)
        for make, reason in HOSTILE.values():
            (hostile,) = append(fabric, [make(target)])
            expected[(hostile.topic, hostile.partition, hostile.offset)] = reason
            genuine_ids.append(publisher.publish(message_of(spec), key=key).event_id)
        append(fabric, [first.record])
        genuine_ids.append(publisher.publish(message_of(spec), key=key).event_id)
    return expected, genuine_ids


def rows_by_reference(fabric: Fabric) -> dict[tuple[str, int, int], DeadLetterRow]:
    """Return the list of dead letters; no record may be in it twice."""
    rows = list_dead_letters(fabric)
    found = {(row.topic, row.partition, row.offset): row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.campaign
def test_every_kind_on_every_topic(fabric: Fabric, record_property: Callable[[str, object], None]) -> None:
    """Nothing hostile gets through or holds up: 26 kinds between genuine records on every topic, two groups."""
    expected: dict[tuple[str, int, int], str] = {}
    genuine: list[str] = []
    for spec in list(fabric.topics):
        hostile, ids = attack(fabric, spec)
        expected |= hostile
        genuine += ids
    assert len(expected) == len(fabric.topics) * len(HOSTILE)
    for _ in range(2):
        handled = judge_everything(fabric, until=set(genuine))
        assert {handled[event_id] for event_id in genuine} == {1}
        rows = rows_by_reference(fabric)
        assert {reference: rows[reference].reason for reference in expected} == expected
        assert {rows[reference].attempts for reference in expected} == {1}
    record_property("hostile_records", len(expected))


def judge_everything(fabric: Fabric, *, until: set[str], to_end: bool = True) -> Counter[str]:
    """Read every topic in a new group, past the events `until` and to its end; return how often each was handled."""
    handled: Counter[str] = Counter()

    def handler(event: Event) -> None:
        handled[event.meta.event_id] += 1

    with fabric.consumer(
        group=fresh_group(),
        instance="judge-0",
        topics=[spec.name for spec in fabric.topics],
        handlers=dict.fromkeys(EVENT_TYPES.values(), handler),
        publisher=fabric.publisher("oona"),
    ) as consumer:
        poll_until(consumer, lambda: until <= handled.keys(), seconds=60.0)
        if to_end:
            poll_to_end(consumer, fabric)
    return handled


def test_hostile_dead_letters_cause_one_letter_each_and_no_loop(scratch: Fabric) -> None:
    """The topic of the dead may be attacked, too: hostile records there, judged three times."""
    expected, _ = attack(scratch, scratch.topics["dead-letters"])
    listed_without_consumer = rows_by_reference(scratch)
    assert {reference: listed_without_consumer[reference].reason for reference in expected} == expected
    before = scratch.cluster.watermarks([("dead-letters", 0)])[("dead-letters", 0)][1]
    for _ in range(3):
        with scratch.consumer(
            group=fresh_group(),
            instance="judge-0",
            topics=["dead-letters"],
            handlers={},
            publisher=scratch.publisher("oona"),
        ) as consumer:
            poll_to_end(consumer, scratch)
            poll_to_end(consumer, scratch)
    after = scratch.cluster.watermarks([("dead-letters", 0)])[("dead-letters", 0)][1]
    assert after - before == len(expected)
    rows = rows_by_reference(scratch)
    assert {reference: rows[reference].reason for reference in expected} == expected


def test_oversized_record_is_set_aside_unread(fabric: Fabric) -> None:
    """A value beyond the cap is never parsed: append 9.5 MiB, signed by nobody, between genuine records."""
    key = f"run-{new_event_id()[:12]}"
    spec = fabric.topics["seed-events"]
    seen: list[str] = []
    partition = fabric.partition_of(spec.name, key)
    (huge,) = append(fabric, [Record(spec.name, partition, -1, key.encode(), bytes(9 * 1024 * 1024 + 512 * 1024))])
    with fabric.publisher("kasmina") as publisher:
        genuine = publisher.publish(message_of(spec), key=key).event_id
    with fabric.consumer(
        group=fresh_group(),
        instance="judge-0",
        topics=[spec.name],
        handlers=dict.fromkeys(
            [EVENT_TYPES[name] for name in spec.types], lambda event: seen.append(event.meta.event_id)
        ),
        publisher=fabric.publisher("oona"),
    ) as consumer:
        poll_until(consumer, lambda: genuine in seen)
    details = show_dead_letter(fabric, spec.name, partition, huge.offset)
    assert (details.reason, details.value_bytes, details.key) == ("TOO_LARGE", 9_961_472, key)
    assert details.record_unchanged
    assert details.value_digest == huge.value_digest


def test_letter_names_what_it_can_and_never_the_payload(fabric: Fabric) -> None:
    """A letter is a reference: set aside a record with a long key and a secret in its value, and look at the letter."""
    key, secret = b"k" * 400, b"a secret payload"
    (record,) = append(
        fabric, [Record("telemetry", 0, -1, key, secret, ((TYPE_HEADER, b"esper.leyline.v1.TelemetryPacket"),))]
    )
    groups = [fresh_group(), fresh_group()]
    with (
        fabric.publisher("oona") as publisher,
        fabric.reader({("telemetry", 0): record.offset}, rejects=publisher) as reader,
    ):
        reader.read_to_end()
    for group in groups:
        with fabric.consumer(
            group=group, instance="judge-0", topics=["telemetry"], handlers={}, publisher=fabric.publisher("oona")
        ) as consumer:
            poll_to_end(consumer, fabric)
    details = show_dead_letter(fabric, "telemetry", 0, record.offset)
    assert details.key == "k" * 256
    assert (details.reason, details.record_type, details.value_bytes) == ("UNSIGNED", "TelemetryPacket", len(secret))
    assert details.consumer_groups == ("esper.reader",)
    assert details.record_unchanged
    with fabric.reader({("dead-letters", 0): "begin"}) as reader:
        letters = [event.record.value or b"" for event in reader.read_to_end()]
    assert all(secret not in letter for letter in letters)


def test_header_name_that_is_no_text_stops_nobody(fabric: Fabric) -> None:
    """The client library cannot show such headers: append them in Kafka's own bytes, to a reader and to a group."""
    key, spec = f"run-{new_event_id()[:12]}", fabric.topics["seed-events"]
    with fabric.publisher("kasmina") as publisher:
        first = publisher.publish(message_of(spec), key=key)
        (genuine,) = read_run(fabric, spec.name, key)
        headers = [(name.encode(), value) for name, value in genuine.record.headers]
        # More than one: the interpreter calls the client differently once it has done so often.
        bare = [append_raw(fabric.bootstrap, genuine.record, [(b"\xff\xfe", b"")]) for _ in range(10)]
        beside = [append_raw(fabric.bootstrap, genuine.record, [*headers, (b"\xc0\x80", None)]) for _ in range(10)]
        last = publisher.publish(message_of(spec), key=key)
    assert [event.meta.event_id for event in read_run(fabric, spec.name, key)] == [first.event_id, last.event_id]
    seen: list[str] = []
    with fabric.consumer(
        group=fresh_group(),
        instance="judge-0",
        topics=[spec.name],
        handlers=dict.fromkeys(
            [EVENT_TYPES[name] for name in spec.types], lambda event: seen.append(event.meta.event_id)
        ),
        publisher=fabric.publisher("oona"),
    ) as consumer:
        poll_until(consumer, lambda: last.event_id in seen)
    for record in (*bare, *beside):
        assert show_dead_letter(fabric, spec.name, record.partition, record.offset).reason == "UNSIGNED"


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_what_is_small_only_while_compressed_is_refused(fabric: Fabric, codec: str) -> None:
    """No reader unpacks a bomb: append 30 MiB of zeros compressed, then a record that is small either way."""
    settings = {"bootstrap.servers": fabric.bootstrap, "compression.type": codec, "message.max.bytes": 100_000_000}
    producer, outcomes = Producer(settings), list[tuple[int, int]]()
    for value in (bytes(30 * 1024 * 1024), bytes(1_000)):
        producer.produce(
            "telemetry",
            value,
            codec,
            0,
            on_delivery=lambda error, message: outcomes.append((error.code() if error else 0, message.offset() or 0)),
        )
        assert producer.flush(60) == 0
    assert [code for code, _ in outcomes] == [KafkaError.MSG_SIZE_TOO_LARGE, 0]
    with fabric.reader({("telemetry", 0): outcomes[1][1]}) as reader:
        record = next(iter(reader.read_raw(10.0)))
    assert (record.key, record.value) == (codec.encode(), bytes(1_000))


def test_open_transaction_of_a_stranger_hides_nothing(fabric: Fabric) -> None:
    """Nobody waits for a stranger to end a transaction: leave one open before a genuine event, and read it."""
    key, spec = f"run-{new_event_id()[:12]}", fabric.topics["seed-events"]
    place = (spec.name, fabric.partition_of(spec.name, key))
    stranger = Producer({"bootstrap.servers": fabric.bootstrap, "transactional.id": fresh_group()})
    stranger.init_transactions(60)
    stranger.begin_transaction()
    stranger.produce(spec.name, b"never committed", key.encode(), place[1])
    assert stranger.flush(30) == 0
    with fabric.publisher("kasmina") as publisher:
        genuine = publisher.publish(message_of(spec), key=key)
        try:
            (event,) = read_run(fabric, spec.name, key)
            assert event.meta.event_id == genuine.event_id
            assert judge_everything(fabric, until={genuine.event_id}, to_end=False)[genuine.event_id] == 1
        finally:
            stranger.abort_transaction(30)
        # The mark of its end is no record; it is not to be the last thing in a partition that other tests read.
        await_end(fabric, place, genuine.offset + 2)
        publisher.publish(message_of(spec), key=key)


def await_end(fabric: Fabric, place: Position, end: int) -> None:
    """Wait until a partition holds what stands before `end`."""
    deadline = Deadline(60.0)
    while fabric.cluster.watermarks([place])[place][1] < end:
        assert not deadline.expired, f"{place} does not reach {end}"
        SYSTEM_CLOCK.sleep(0.01)
