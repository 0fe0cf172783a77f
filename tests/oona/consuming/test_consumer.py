"""The consumer loop on a real broker: everything once, in order, across restarts, whatever handlers do."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import cast

import pytest
from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, TopicPartition

from esper.core.clock import Deadline
from esper.core.errors import BrokerUnavailable, Busy, EsperError, IntegrityError, NotReadyError, UsageError
from esper.core.ids import new_run_id
from esper.leyline import messages as ly
from esper.oona import Consumer, Event, Fabric, list_dead_letters
from tests.conftest import RunningBroker
from tests.oona.log import (
    append,
    fresh_group,
    packet,
    poll_to_end,
    poll_until,
    read_run,
    run_on_partition,
    signed_record,
)


class Seen:
    """A handler that keeps the epochs of one run."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.epochs: list[int] = []

    def __call__(self, event: Event) -> None:
        if event.meta.subject == self.run_id:
            self.epochs.append(cast("ly.SystemStatePacket", event.message).current_epoch)


def member(
    fabric: Fabric, group: str, handler: Callable[[Event], None], *, instance: str = "member-0", **more: object
) -> Consumer:
    """Return a consumer of `system-state`."""
    return fabric.consumer(
        group=group,
        instance=instance,
        topics=["system-state"],
        handlers={ly.SystemStatePacket: handler},
        publisher=fabric.publisher("tamiyo"),
        **more,  # type: ignore[arg-type]
    )


def publish_epochs(fabric: Fabric, run_id: str, epochs: range) -> None:
    """Append one packet for each epoch."""
    with fabric.publisher("tolaria") as publisher:
        for epoch in epochs:
            publisher.submit(packet(run_id, epoch), key=run_id)
        publisher.flush()


def letters_of(fabric: Fabric, run_id: str) -> list[tuple[str, int]]:
    """Return (reason, attempts) of every dead letter with this key."""
    return [(row.reason, row.attempts) for row in list_dead_letters(fabric) if row.key == run_id]


def test_new_group_reads_from_the_first_record_and_in_order(fabric: Fabric) -> None:
    """What was appended before the group existed is delivered: publish first, join later."""
    seen = Seen(new_run_id())
    publish_epochs(fabric, seen.run_id, range(50))
    with member(fabric, fresh_group(), seen) as consumer:
        poll_until(consumer, lambda: len(seen.epochs) == 50)
        poll_to_end(consumer, fabric)
    assert seen.epochs == list(range(50))


def test_restart_resumes_at_the_committed_offset_at_once(fabric: Fabric) -> None:
    """A restarted member has its place back: close it, publish, join with the same id; take the time."""
    seen, group = Seen(new_run_id()), fresh_group()
    publish_epochs(fabric, seen.run_id, range(5))
    with member(fabric, group, seen) as consumer:
        poll_to_end(consumer, fabric)
    publish_epochs(fabric, seen.run_id, range(5, 10))
    before = Deadline(30.0)
    with member(fabric, group, seen) as consumer:
        poll_until(consumer, lambda: len(seen.epochs) == 10)
        taken = 30.0 - before.remaining_seconds
        poll_to_end(consumer, fabric)
        assert consumer.metrics().deduplicated == 0
    assert seen.epochs == list(range(10))
    assert taken < 3.0, "a session of 6 seconds was not waited for"


def test_events_without_handler_are_passed_over(fabric: Fabric) -> None:
    """A member handles what it asked for: give no handlers, look at the counters."""
    run_id = new_run_id()
    publish_epochs(fabric, run_id, range(3))
    with fabric.consumer(
        group=fresh_group(), instance="m-0", topics=["system-state"], handlers={}, publisher=fabric.publisher("tamiyo")
    ) as consumer:
        poll_to_end(consumer, fabric)
        metrics = consumer.metrics()
    assert metrics.handled == 0
    assert metrics.filtered >= 3
    assert metrics.read == metrics.filtered + metrics.deduplicated + metrics.rejected


def test_poison_is_parked_after_five_attempts_and_other_keys_go_on(fabric: Fabric) -> None:
    """One bad event must not stop other keys: a handler that always fails on epoch 2 of one of two runs."""
    poisoned = new_run_id()
    healthy = run_on_partition(fabric, "system-state", fabric.partition_of("system-state", poisoned))
    attempts = Counter[tuple[str, int]]()

    def handler(event: Event) -> None:
        epoch = cast("ly.SystemStatePacket", event.message).current_epoch
        attempts[(event.meta.subject, epoch)] += 1
        if (event.meta.subject, epoch) == (poisoned, 2):
            raise ZeroDivisionError("poison")

    publish_epochs(fabric, poisoned, range(5))
    publish_epochs(fabric, healthy, range(5))
    group = fresh_group()
    with member(fabric, group, handler) as consumer:
        poll_until(consumer, lambda: attempts[(healthy, 4)] == 1)
        metrics = consumer.metrics()
    assert [attempts[(poisoned, epoch)] for epoch in range(5)] == [1, 1, 5, 0, 0]
    assert [attempts[(healthy, epoch)] for epoch in range(5)] == [1, 1, 1, 1, 1]
    assert letters_of(fabric, poisoned) == [("HANDLER_FAILED", 5), ("WAITS_FOR_KEY", 0), ("WAITS_FOR_KEY", 0)]
    assert (metrics.dead_lettered["HANDLER_FAILED"], metrics.dead_lettered["WAITS_FOR_KEY"]) == (1, 2)
    assert metrics.retried == 4
    with member(fabric, group, handler) as consumer:
        poll_to_end(consumer, fabric)
    assert attempts[(poisoned, 2)] == 5, "a parked event is not tried again after a restart"


def test_handler_that_fails_for_a_moment_is_tried_again(fabric: Fabric) -> None:
    """A passing fault loses nothing and sets nothing aside: fail six times with a retriable error."""
    run_id, failures = new_run_id(), 6

    def handler(event: Event) -> None:
        nonlocal failures
        if event.meta.subject == run_id and failures:
            failures -= 1
            raise NotReadyError("not yet")

    publish_epochs(fabric, run_id, range(1))
    with member(fabric, fresh_group(), handler) as consumer:
        poll_until(consumer, lambda: failures == 0)
        poll_to_end(consumer, fabric)
        assert consumer.metrics().retried == 6
    assert letters_of(fabric, run_id) == []


def test_fault_that_does_not_pass_ends_the_member_uncommitted(broker: RunningBroker, fabric: Fabric) -> None:
    """After the retry time a member stops loudly and its event waits: a retry time of 1 s, then a healthy life."""
    settings = broker.settings.model_copy(update={"broker_retry_seconds": 1.0})
    seen, group = Seen(new_run_id()), fresh_group()

    def handler(event: Event) -> None:
        if event.meta.subject == seen.run_id:
            raise NotReadyError("never")

    publish_epochs(fabric, seen.run_id, range(2))
    with (
        Fabric.open(settings, member="test") as impatient,
        member(impatient, group, handler) as consumer,
        pytest.raises(NotReadyError, match="never"),
    ):
        poll_to_end(consumer, fabric)
    with member(fabric, group, seen) as consumer:
        poll_to_end(consumer, fabric)
    assert seen.epochs == [0, 1]
    assert letters_of(fabric, seen.run_id) == []


def test_lost_broker_in_a_handler_ends_the_member_at_once(fabric: Fabric) -> None:
    """Whoever says that no broker answers has waited already: raise it once and count the calls."""
    run_id, calls = new_run_id(), 0

    def handler(event: Event) -> None:
        nonlocal calls
        if event.meta.subject == run_id:
            calls += 1
            raise BrokerUnavailable("gone")

    publish_epochs(fabric, run_id, range(1))
    with member(fabric, fresh_group(), handler) as consumer, pytest.raises(BrokerUnavailable):
        poll_to_end(consumer, fabric)
    assert calls == 1


def test_replayed_bytes_are_recognised_before_and_after_a_restart(fabric: Fabric) -> None:
    """The same bytes appended again change nothing: append a copy, restart the member, append another."""
    seen, group = Seen(new_run_id()), fresh_group()
    publish_epochs(fabric, seen.run_id, range(3))
    copies = [event.record for event in read_run(fabric, "system-state", seen.run_id)]
    append(fabric, copies[1:2])
    with member(fabric, group, seen) as consumer:
        poll_to_end(consumer, fabric)
        assert consumer.metrics().deduplicated >= 1
    append(fabric, copies)
    with member(fabric, group, seen) as consumer:
        poll_to_end(consumer, fabric)
        assert consumer.metrics().deduplicated == 3
        assert consumer.metrics().handled == 0
    assert seen.epochs == [0, 1, 2]
    assert letters_of(fabric, seen.run_id) == []


def test_replay_is_recognised_after_another_tool_set_the_offsets(fabric: Fabric) -> None:
    """Without stored sequences the history is read once: set the group's offsets by hand, then replay."""
    seen, group = Seen(new_run_id()), fresh_group()
    publish_epochs(fabric, seen.run_id, range(3))
    copies = [event.record for event in read_run(fabric, "system-state", seen.run_id)]
    ends = fabric.cluster.watermarks(fabric.topics.partitions("system-state"))
    tool = KafkaConsumer({"bootstrap.servers": fabric.bootstrap, "group.id": group})
    tool.commit(offsets=[TopicPartition(*place, end) for place, (_, end) in ends.items()], asynchronous=False)
    tool.close()
    append(fabric, copies)
    with member(fabric, group, seen) as consumer:
        poll_to_end(consumer, fabric)
        assert consumer.metrics().deduplicated == 3
    assert seen.epochs == []


def test_contradicting_copies_are_set_aside(fabric: Fabric) -> None:
    """An id says one thing: append, properly signed, an old id with a new payload and a used sequence with a new id."""
    run_id = new_run_id()
    seen = Seen(run_id)
    with fabric.publisher("tolaria") as publisher:
        receipt = publisher.publish(packet(run_id, 1), key=run_id)
    same = {"key": run_id, "source": "tolaria", "producer_id": publisher.producer_id, "sequence": 1}
    forged = append(
        fabric,
        [
            signed_record(fabric, packet(run_id, 7), event_id=receipt.event_id, **same),  # type: ignore[arg-type]
            signed_record(fabric, packet(run_id, 8), **same),  # type: ignore[arg-type]
        ],
    )
    publish_epochs(fabric, run_id, range(2, 3))
    with member(fabric, fresh_group(), seen) as consumer:
        poll_until(consumer, lambda: 2 in seen.epochs)
        assert consumer.metrics().dead_lettered["CONFLICTING_DUPLICATE"] >= 2
    assert seen.epochs == [1, 2]
    rows = {(row.partition, row.offset): row.reason for row in list_dead_letters(fabric) if row.key == run_id}
    assert rows == {(record.partition, record.offset): "CONFLICTING_DUPLICATE" for record in forged}


def test_two_members_share_a_group_and_lose_nothing_at_the_hand_over(fabric: Fabric) -> None:
    """Partitions move while events flow: a second member joins in the middle; every event is handled once."""
    run_ids, group = [new_run_id() for _ in range(24)], fresh_group()
    handled: Counter[tuple[str, int]] = Counter()
    lock, failures = threading.Lock(), list[BaseException]()

    def handler(event: Event) -> None:
        with lock:
            handled[(event.meta.subject, cast("ly.SystemStatePacket", event.message).current_epoch)] += 1

    def work(consumer: Consumer, stop: threading.Event) -> None:
        try:
            consumer.run(stop)
        except EsperError as error:
            failures.append(error)

    stop = threading.Event()
    consumers = [member(fabric, group, handler)]
    threads = [threading.Thread(target=work, args=(consumers[0], stop))]
    threads[0].start()
    with fabric.publisher("tolaria") as publisher:
        for epoch in range(20):
            for run_id in run_ids:
                publisher.publish(packet(run_id, epoch), key=run_id)
            if epoch == 5:
                consumers.append(member(fabric, group, handler, instance="member-1"))
                threads.append(threading.Thread(target=work, args=(consumers[1], stop)))
                threads[1].start()
    wanted = {(run_id, epoch) for run_id in run_ids for epoch in range(20)}
    deadline = Deadline(40.0)
    shared = threading.Event()
    while not (wanted <= handled.keys() and len(consumers[1].assignment()) == 4):
        assert not deadline.expired, f"{len(wanted - handled.keys())} events are missing; {failures}"
        shared.wait(0.05)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert {handled[one] for one in wanted} == {1}


def test_assignment_is_announced_before_its_events(fabric: Fabric) -> None:
    """A handler with state prepares first: note the order of announcement and events."""
    run_id, order = new_run_id(), list[str]()
    publish_epochs(fabric, run_id, range(1))

    def handler(event: Event) -> None:
        order.append("event")

    with member(
        fabric, fresh_group(), handler, on_assign=lambda places: order.append(f"{len(places)} partitions")
    ) as consumer:
        poll_to_end(consumer, fabric)
        assert consumer.assignment() == fabric.topics.partitions("system-state")
    assert order[0] == "8 partitions"
    assert set(order[1:]) == {"event"}


def test_second_process_under_the_same_id_ends_the_first(fabric: Fabric) -> None:
    """One instance, one process: start a second one; the first says why it cannot go on."""
    group, run_id = fresh_group(), new_run_id()
    with member(fabric, group, Seen(run_id)) as first:
        poll_to_end(first, fabric)
        with member(fabric, group, Seen(run_id)) as second:
            poll_until(second, lambda: bool(second.assignment()))
            with pytest.raises(Busy, match=r"another process took this member's place"):
                poll_until(first, lambda: False, seconds=20.0)


def test_member_that_its_own_ghost_fenced_after_an_outage_joins_anew(fabric: Fabric) -> None:
    """A late request under an old member id may fence a member: report an outage, fence it, and let it go on."""
    seen, group = Seen(new_run_id()), fresh_group()
    with member(fabric, group, seen) as first:
        poll_to_end(first, fabric)
        with member(fabric, group, Seen("nobody")) as ghost:
            poll_until(ghost, lambda: bool(ghost.assignment()))
        first._membership._watch.on_error(KafkaError(KafkaError._TRANSPORT))
        poll_until(first, lambda: not first.assignment())
        publish_epochs(fabric, seen.run_id, range(2))
        poll_until(first, lambda: seen.epochs == [0, 1])


def test_paused_member_keeps_its_place_and_takes_nothing(fabric: Fabric) -> None:
    """A worker that trains stays in its group: pause, publish, poll, resume."""
    seen = Seen(new_run_id())
    with member(fabric, fresh_group(), seen) as consumer:
        poll_to_end(consumer, fabric)
        consumer.pause()
        publish_epochs(fabric, seen.run_id, range(3))
        assert sum(consumer.poll(0.2) for _ in range(5)) == 0
        assert len(consumer.assignment()) == 8
        consumer.resume()
        poll_until(consumer, lambda: len(seen.epochs) == 3)


def test_handler_may_pause_its_member(fabric: Fabric) -> None:
    """A worker takes one order at a time: pause in the handler, find the second order untouched, resume."""
    run_id, epochs, consumers = new_run_id(), list[int](), list[Consumer]()

    def handler(event: Event) -> None:
        if event.meta.subject == run_id:
            epochs.append(cast("ly.SystemStatePacket", event.message).current_epoch)
            consumers[0].pause()

    with member(fabric, fresh_group(), handler) as consumer:
        consumers.append(consumer)
        poll_to_end(consumer, fabric)
        publish_epochs(fabric, run_id, range(2))
        poll_until(consumer, lambda: epochs == [0])
        assert sum(consumer.poll(0.2) for _ in range(3)) == 0
        consumer.resume()
        poll_until(consumer, lambda: epochs == [0, 1])


def test_limit_of_a_poll_is_kept(fabric: Fabric) -> None:
    """A caller may take records one by one: poll with a limit of one over a backlog of five."""
    seen = Seen(new_run_id())
    with member(fabric, fresh_group(), seen) as consumer:
        poll_to_end(consumer, fabric)
        publish_epochs(fabric, seen.run_id, range(5))
        deadline = Deadline(30.0)
        while len(seen.epochs) < 5:
            assert not deadline.expired
            assert consumer.poll(0.5, limit=1) <= 1
    assert seen.epochs == [0, 1, 2, 3, 4]


def test_stop_leaves_a_failing_event_for_the_next_life(fabric: Fabric) -> None:
    """A stop is obeyed within a retry: set it from a failing handler; the next life handles the event."""
    seen, group, stop = Seen(new_run_id()), fresh_group(), threading.Event()

    def handler(event: Event) -> None:
        if event.meta.subject == seen.run_id:
            stop.set()
            raise NotReadyError("not yet")

    publish_epochs(fabric, seen.run_id, range(1))
    runner = threading.Thread(target=member(fabric, group, handler).run, args=(stop,))
    runner.start()
    runner.join(30)
    assert not runner.is_alive()
    with member(fabric, group, seen) as consumer:
        poll_to_end(consumer, fabric)
    assert seen.epochs == [0]


@pytest.mark.parametrize(
    ("code", "again"),
    [
        (KafkaError.REBALANCE_IN_PROGRESS, True),
        (KafkaError._WAIT_COORD, True),
        (KafkaError.ILLEGAL_GENERATION, False),
    ],
)
def test_refused_offsets_are_sent_again_unless_the_partition_is_lost(fabric: Fabric, code: int, again: bool) -> None:
    """A busy group takes offsets later, a lost partition never: hand the outcome of a commit to a real member."""
    with member(fabric, fresh_group(), Seen("nobody")) as consumer:
        poll_to_end(consumer, fabric)
        place = consumer.assignment()[0]
        poll_until(consumer, lambda: not consumer._membership._committing)
        consumer._membership._on_commit(KafkaError(code), [TopicPartition(*place, 1)])
        assert (place in consumer._membership._uncommitted) is again
        consumer._membership.check()


def test_forbidden_commit_ends_the_member(fabric: Fabric) -> None:
    """What a group may not store it must not go on without: hand a refusal to a real member and poll."""
    with member(fabric, fresh_group(), Seen("nobody")) as consumer:
        poll_to_end(consumer, fabric)
        refusal = KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED)
        consumer._membership._on_commit(refusal, [TopicPartition(*consumer.assignment()[0], 1)])
        with pytest.raises(NotReadyError, match="ACLs"):
            consumer.poll(0.1)


def test_handlers_that_no_topic_can_call_are_refused(fabric: Fabric) -> None:
    """A forgotten subscription shows at once: give a handler for another topic's type, and no topic at all."""
    with pytest.raises(UsageError, match="DecisionMade would never be called"):
        fabric.consumer(
            group="g",
            instance="i",
            topics=["system-state"],
            handlers={ly.DecisionMade: lambda event: None},
            publisher=fabric.publisher("tamiyo"),
        )
    with pytest.raises(UsageError, match="a consumer needs a topic"):
        fabric.consumer(group="g", instance="i", topics=[], handlers={}, publisher=fabric.publisher("tamiyo"))


@pytest.fixture
def truncated(scratch: Fabric) -> Fabric:
    """Return a fabric whose topic `blueprints` lost its first two records."""
    with scratch.publisher("karn") as publisher:
        for _ in range(4):
            publisher.publish(ly.BlueprintRegistered(), key="BP001")
    futures = scratch.cluster.admin.delete_records([TopicPartition("blueprints", 0, 2)])
    for future in futures.values():
        future.result(timeout=30)
    return scratch


def test_lost_truth_stops_groups_and_readers(truncated: Fabric) -> None:
    """History that is gone is never skipped in silence: delete records, then join a group and read by position."""
    consumer = truncated.consumer(
        group=fresh_group(), instance="m-0", topics=["blueprints"], handlers={}, publisher=truncated.publisher("karn")
    )
    with consumer, pytest.raises(IntegrityError, match="records before offset 2 are gone"):
        poll_until(consumer, lambda: False)
    with truncated.reader({("blueprints", 0): 1}) as reader, pytest.raises(IntegrityError, match="does not hold"):
        reader.read_to_end()
    with truncated.reader({("blueprints", 0): "begin"}) as reader:
        assert [event.offset for event in reader.read_to_end()] == [2, 3]


def test_expired_telemetry_is_skipped_with_a_word(scratch: Fabric, caplog: pytest.LogCaptureFixture) -> None:
    """Telemetry may expire unread: pause a member, append, delete what it has not read, and resume."""
    seen = list[int]()
    consumer = scratch.consumer(
        group=fresh_group(),
        instance="m-0",
        topics=["telemetry"],
        handlers={ly.TelemetryPacket: lambda event: seen.append(event.offset)},
        publisher=scratch.publisher("nissa"),
    )
    with consumer:
        poll_to_end(consumer, scratch)
        seen.clear()
        consumer.pause()
        with scratch.publisher("nissa") as publisher:
            offsets = [publisher.publish(ly.TelemetryPacket(), key="nissa").offset for _ in range(4)]
        futures = scratch.cluster.admin.delete_records([TopicPartition("telemetry", 0, offsets[2])])
        for future in futures.values():
            future.result(timeout=30)
        consumer.resume()
        poll_until(consumer, lambda: len(seen) == 2)
    assert seen == offsets[2:]
    assert "expired before they were read" in caplog.text
