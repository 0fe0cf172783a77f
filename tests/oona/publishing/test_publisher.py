"""Publishing: acknowledged, signed over the exact bytes, chained without gaps, refused early when wrong."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest

from esper.core.clock import SystemClock
from esper.core.errors import BrokerUnavailable, NotReadyError, UsageError
from esper.core.ids import derive_id, new_run_id
from esper.leyline import CLOCK_SKEW_MS_MAX, SIGNATURE_HEADER, VALUE_BYTES_MAX, mac_of, open_record
from esper.leyline import messages as ly
from esper.oona import Event, Fabric, Publisher
from tests.oona.log import packet, read_run


def assert_chained(events: list[Event], producer_id: str) -> None:
    """Check that one producer's records on each partition count from 1 and name their predecessor's MAC."""
    by_partition = defaultdict(list)
    for event in events:
        if event.meta.producer_id == producer_id:
            by_partition[(event.topic, event.partition)].append(event)
    for chain in by_partition.values():
        macs = [mac_of(event.record.header(SIGNATURE_HEADER) or b"") for event in chain]
        assert [event.meta.sequence for event in chain] == list(range(1, len(chain) + 1))
        assert [event.meta.previous_mac for event in chain] == [b"", *macs[:-1]]


def read_all(fabric: Fabric, topic: str) -> list[Event]:
    """Return every event of a topic."""
    with fabric.reader(dict.fromkeys(fabric.topics.partitions(topic), "begin")) as reader:
        return reader.read_to_end()


def test_round_trip_keeps_message_and_meta(fabric: Fabric) -> None:
    """What is published is what is read: append one packet, read it back, compare every field of its meta."""
    run_id = new_run_id()
    message = packet(run_id, 3)
    with fabric.publisher("tolaria") as publisher:
        receipt = publisher.publish(message, key=run_id, causation_id="cause", priority=ly.MESSAGE_PRIORITY_HIGH)
    (event,) = read_run(fabric, "system-state", run_id)
    assert event.message == message
    assert (event.topic, event.partition, event.offset) == (receipt.topic, receipt.partition, receipt.offset)
    assert event.record.append_time_ms == receipt.append_time_ms > 0
    assert event.meta == message.meta
    meta = event.meta
    assert (meta.event_id, meta.subject, meta.correlation_id) == (receipt.event_id, run_id, run_id)
    assert (meta.type, meta.source, meta.schema_version) == ("esper.leyline.v1.SystemStatePacket", "tolaria", 1)
    assert (meta.causation_id, meta.priority) == ("cause", ly.MESSAGE_PRIORITY_HIGH)
    assert (meta.producer_id, meta.sequence, meta.previous_mac) == (publisher.producer_id, 1, b"")
    assert abs(meta.time.ToMilliseconds() - receipt.append_time_ms) < 60_000


def test_given_and_present_event_ids_are_kept(fabric: Fabric) -> None:
    """Derived ids name events alike in every attempt: give one as argument and one in the message."""
    run_id = new_run_id()
    given, present = derive_id(run_id, "given"), derive_id(run_id, "present")
    marked = packet(run_id, 2)
    marked.meta.event_id = present
    with fabric.publisher("tolaria") as publisher:
        assert publisher.publish(packet(run_id, 1), key=run_id, event_id=given).event_id == given
        assert publisher.publish(marked, key=run_id).event_id == present
        assert publisher.publish(packet(run_id, 3), key=run_id, correlation_id="other").event_id not in (given, present)
    events = read_run(fabric, "system-state", run_id)
    assert [event.meta.event_id for event in events][:2] == [given, present]
    assert events[2].meta.correlation_id == "other"


def test_chain_is_contiguous_on_every_partition(fabric: Fabric) -> None:
    """Each partition has its own chain: publish 60 runs' events over two topics and follow sequence and MACs."""
    run_ids = [new_run_id() for _ in range(60)]
    with fabric.publisher("tolaria") as publisher:
        for epoch, run_id in enumerate(run_ids):
            publisher.submit(packet(run_id, epoch), key=run_id)
            publisher.submit(ly.TrainingRunStarted(run_id=run_id), key=run_id)
        publisher.flush()
    for topic in ("system-state", "runs"):
        events = [event for event in read_all(fabric, topic) if event.meta.producer_id == publisher.producer_id]
        assert len(events) == 60
        assert len({event.partition for event in events}) == 8
        assert_chained(events, publisher.producer_id)


def test_threads_share_a_publisher_without_breaking_its_chain(fabric: Fabric) -> None:
    """Order of chain and order of log are one: publish from eight threads to few partitions and follow the chain."""
    run_ids = [new_run_id() for _ in range(3)]

    def work(publisher: Publisher, thread: int) -> None:
        for number in range(40):
            publisher.publish(packet(run_ids[number % 3], thread), key=run_ids[number % 3])

    with fabric.publisher("tolaria") as publisher, ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, publisher, thread) for thread in range(8)]:
            done.result(timeout=60)
        assert publisher.metrics().acknowledged == publisher.metrics().submitted == 320
    events = [event for run_id in run_ids for event in read_run(fabric, "system-state", run_id)]
    assert len(events) == 320
    assert_chained(read_all(fabric, "system-state"), publisher.producer_id)


def test_the_signature_covers_the_exact_bytes(fabric: Fabric) -> None:
    """Nothing is serialised twice: verify the record as it stands in the log with the leyline's own check."""
    run_id = new_run_id()
    with fabric.publisher("tolaria") as publisher:
        publisher.publish(packet(run_id, 1), key=run_id)
    (event,) = read_run(fabric, "system-state", run_id)
    meta = open_record(event.record, keyring=fabric.keyring, allowed=fabric.topics.allowed)
    assert meta == event.meta
    assert event.record.value == event.message.SerializeToString(deterministic=True)


def test_largest_event_passes_and_a_larger_one_is_refused_before_it_breaks_the_chain(fabric: Fabric) -> None:
    """The cap is clear and costs nothing: publish up to it, beyond it, and again."""
    run_id = new_run_id()
    with fabric.publisher("tolaria") as publisher:
        largest = ly.TrainingRunFailed(run_id=run_id, detail="x" * (VALUE_BYTES_MAX - 1024))
        publisher.publish(largest, key=run_id)
        with pytest.raises(UsageError, match=r"not appended to runs: it has \d+ bytes, a record holds at most 9437184"):
            publisher.publish(ly.TrainingRunFailed(run_id=run_id, detail="x" * VALUE_BYTES_MAX), key=run_id)
        publisher.publish(ly.TrainingRunFailed(run_id=run_id), key=run_id)
    events = read_run(fabric, "runs", run_id)
    assert [len(event.message.detail) > 0 for event in events] == [True, False]  # type: ignore[attr-defined]
    assert [event.meta.sequence for event in events] == [1, 2]


def test_wrong_writer_key_and_type_are_usage_errors(fabric: Fabric) -> None:
    """A programmer's slip is told at once and by name: publish as a stranger, without key, and after the end."""
    with fabric.publisher("tamiyo") as publisher:
        with pytest.raises(UsageError, match="tamiyo may not write SystemStatePacket"):
            publisher.publish(packet("run", 1), key="run")
        with pytest.raises(UsageError, match="its key is empty"):
            publisher.publish(ly.DecisionMade(), key="")
        assert publisher.metrics().submitted == 0
    with pytest.raises(UsageError, match="the publisher is closed"):
        publisher.publish(ly.DecisionMade(), key="run")
    publisher.close()


def test_result_of_a_pending_event_can_be_waited_for_in_parts(fabric: Fabric) -> None:
    """`submit` hands out the receipt later: wait for three events in reverse order."""
    run_id = new_run_id()
    with fabric.publisher("tolaria") as publisher:
        pending = [publisher.submit(packet(run_id, epoch), key=run_id) for epoch in range(3)]
        offsets = [one.result(timeout=30.0).offset for one in reversed(pending)]
    assert offsets == sorted(offsets, reverse=True)
    assert all(one.done for one in pending)


def test_full_queue_slows_the_caller_and_drops_nothing(fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backpressure is no loss: submit 500 events through a queue for ten."""
    monkeypatch.setattr("esper.oona.publishing._queue.QUEUE_RECORDS_MAX", 10)
    run_id = new_run_id()
    with fabric.publisher("tolaria") as publisher:
        for epoch in range(500):
            publisher.submit(packet(run_id, epoch), key=run_id)
        publisher.flush()
        assert publisher.metrics().backpressure_waits > 0
        assert publisher.metrics().acknowledged == 500
    assert [event.meta.sequence for event in read_run(fabric, "system-state", run_id)] == list(range(1, 501))


def test_impatient_caller_is_told_and_the_event_goes_on(fabric: Fabric) -> None:
    """A short timeout says nothing of the event's fate: wait no time at all, then as long as it takes."""
    run_id = new_run_id()
    with fabric.publisher("tolaria") as publisher:
        pending = publisher.submit(packet(run_id, 1), key=run_id)
        with pytest.raises(BrokerUnavailable, match="no acknowledgement within 0 seconds"):
            pending.result(timeout=0.0)
        assert pending.result().event_id
    assert len(read_run(fabric, "system-state", run_id)) == 1


class FastClock(SystemClock):
    """A clock that is ahead of the broker's by more than is believed."""

    def now_ns(self) -> int:
        return super().now_ns() + 2 * CLOCK_SKEW_MS_MAX * 1_000_000


def test_a_clock_that_is_ahead_is_told_and_its_events_are_not_believed(fabric: Fabric) -> None:
    """An event that nobody will believe is no success: publish by a clock ten minutes ahead, and read the log."""
    run_id, line = new_run_id(), fabric._line("tolaria")
    publisher = Publisher(fabric.cluster, keyring=fabric.keyring, topics=fabric.topics, line=line, clock=FastClock())
    with pytest.raises(NotReadyError, match=r"clock is \d+ s ahead of the broker's"):
        publisher.publish(packet(run_id, 1), key=run_id)
    with pytest.raises(NotReadyError, match="clock"):
        publisher.publish(packet(run_id, 2), key=run_id)
    publisher.close()
    assert read_run(fabric, "system-state", run_id) == []
    with fabric.publisher("tolaria") as successor:
        successor.publish(packet(run_id, 1), key=run_id)
    assert [event.meta.producer_id for event in read_run(fabric, "system-state", run_id)] == [successor.producer_id]
