"""Handlers that take longer than a group waits, partitions taken away meanwhile, and ends within a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from esper.core.clock import Deadline
from esper.core.errors import EsperError
from esper.core.ids import new_run_id
from esper.leyline import Record
from esper.leyline import messages as ly
from esper.oona import Consumer, Event, Fabric, list_dead_letters
from tests.conftest import RunningBroker, StartBroker
from tests.oona.letters.parking import TOPIC, Poisoned, join, publish_steps, rows_of
from tests.oona.letters.test_redrive import run_in_thread, wait_for
from tests.oona.log import fresh_group, poll_to_end, poll_until, run_on_partition

#: The shortest that librdkafka allows: not below the session of six seconds.
SHORT = {"member_poll_seconds": 6.0}


class Working(Poisoned):
    """A handler that works on epoch 0 for as long as it is told to."""

    def __init__(self, run_id: str, until: Callable[[], bool]) -> None:
        super().__init__([run_id])
        self.begun = self.ended = 0
        self._until = until

    def __call__(self, event: Event) -> None:
        mine = event.meta.subject in self.runs and not self.handled[event.meta.subject]
        if mine:
            self.begun += 1
            deadline, never = Deadline(60.0), threading.Event()
            while not self._until():
                assert not deadline.expired
                never.wait(0.05)
        super().__call__(event)
        self.ended += mine


class Team:
    """Members that run in threads until the end of a test."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self.failures: list[EsperError] = []
        self._threads: list[threading.Thread] = []

    def start(self, consumer: Consumer) -> Consumer:
        """Run a member."""
        self._threads.append(run_in_thread(consumer, self._stop, self.failures))
        return consumer

    def stop(self) -> None:
        """Stop all members; fail when one had failed or does not end."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        assert self.failures == []


def test_handler_slower_than_the_poll_interval_keeps_its_partitions(broker: RunningBroker) -> None:
    """Goal: a long piece of work is done once. Method: work for 1.5 poll intervals, then look who holds what."""
    run_id, group = new_run_id(), fresh_group()
    with Fabric.open(broker.settings.model_copy(update=SHORT), member="test") as fabric:
        publish_steps(fabric, [(run_id, 0), (run_id, 1)])
        working_time = Deadline(9.0)
        handler = Working(run_id, lambda: working_time.expired)
        with join(fabric, group, handler) as consumer:
            poll_until(consumer, lambda: handler.handled[run_id] == [0, 1])
            generation = consumer._membership.generation
            assert len(consumer.assignment()) == 8
            poll_to_end(consumer, fabric)
            assert consumer._membership.generation == generation == 1, "no partition was lost"
        assert handler.begun == 1
        with join(fabric, group, late := Poisoned([run_id])) as consumer:
            poll_to_end(consumer, fabric)
        assert late.handled[run_id] == [], "its offset was committed"


def test_partition_that_is_taken_away_waits_for_the_event_at_work(broker: RunningBroker) -> None:
    """Goal: a hand-over is clean. Method: a second member joins while an event is at work; nobody handles it twice."""
    run_id, group, team = run_on_partition_of(broker, 6), fresh_group(), Team()
    with Fabric.open(broker.settings.model_copy(update=SHORT), member="test") as fabric:
        joined = threading.Event()
        handler, other = Working(run_id, joined.is_set), Poisoned([run_id])
        first = join(fabric, group, handler)
        poll_to_end(first, fabric)
        publish_steps(fabric, [(run_id, 0)])
        team.start(first)
        wait_for(lambda: handler.begun == 1)
        second = team.start(join(fabric, group, other, instance="member-1"))
        # The first one has been asked to give partitions up as soon as somebody waits for its work.
        wait_for(lambda: first._membership.draining, seconds=30)
        assert second.assignment() == []
        joined.set()
        wait_for(lambda: (TOPIC, 6) in second.assignment(), seconds=30)
        publish_steps(fabric, [(run_id, 1)])
        wait_for(lambda: other.handled[run_id] == [1])
        team.stop()
    assert handler.handled[run_id] == [0]
    assert (handler.begun, handler.ended) == (1, 1)


def test_partition_is_given_up_when_its_event_takes_too_long(broker: RunningBroker) -> None:
    """Goal: nobody waits without end. Method: drain for 0.5 s; the next member handles the event, none is lost."""
    run_id, group, team = run_on_partition_of(broker, 6), fresh_group(), Team()
    settings = broker.settings.model_copy(update={**SHORT, "member_drain_seconds": 0.5})
    with Fabric.open(settings, member="test") as fabric:
        other = Poisoned([run_id])
        handler = Working(run_id, lambda: other.handled[run_id] == [0])
        first = join(fabric, group, handler)
        poll_to_end(first, fabric)
        publish_steps(fabric, [(run_id, 0)])
        team.start(first)
        wait_for(lambda: handler.begun == 1)
        team.start(join(fabric, group, other, instance="member-1"))
        wait_for(lambda: other.handled[run_id] == [0], seconds=30)
        wait_for(lambda: handler.ended == 1)
        publish_steps(fabric, [(run_id, 1)])
        wait_for(lambda: other.handled[run_id] == [0, 1])
        team.stop()
    assert handler.handled[run_id] == [0]


@pytest.mark.parametrize("fails", [True, False])
def test_lost_partitions_end_no_member_and_lose_no_event(broker: RunningBroker, fails: bool) -> None:
    """Goal: a handler that hangs gives its place up, and a member that comes to goes on.

    Method: allow one second of work, work until another member has the partition, then fail or succeed. What the
    first one parks after that would block a key that is another member's, so it parks nothing.
    """
    run_id, group, team = run_on_partition_of(broker, 6), fresh_group(), Team()
    settings = broker.settings.model_copy(update={**SHORT, "handler_seconds_max": 1.0})
    with Fabric.open(settings, member="test") as fabric:
        other = Poisoned([run_id])
        handler = Working(run_id, lambda: other.handled[run_id] == [0])
        first = join(fabric, group, handler)
        poll_to_end(first, fabric)
        publish_steps(fabric, [(run_id, 0)])
        if fails:
            handler.poison.add((run_id, 0))
        team.start(first)
        wait_for(lambda: handler.begun == 1)
        second = team.start(join(fabric, group, other, instance="member-1"))
        wait_for(lambda: other.handled[run_id] == [0], seconds=60)
        wait_for(lambda: bool(team.failures) or len(first.assignment()) == len(second.assignment()) == 4, seconds=60)
        assert team.failures == []
        publish_steps(fabric, [(run_id, 1)])
        wait_for(lambda: other.handled[run_id] == [0, 1])
        team.stop()
    assert rows_of_group(broker, group) == []


def test_closing_while_the_broker_is_away_takes_seconds(
    start_broker: StartBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """Goal: a shutdown has a deadline. Method: kill the broker with letters on their way, close, take the time."""
    running = start_broker(broker_retry_seconds=240.0)
    run_id = new_run_id()
    with Fabric.open(running.settings, member="test") as fabric:
        consumer = join(fabric, fresh_group(), Poisoned([run_id], [(run_id, 0)]))
        publish_steps(fabric, [(run_id, 0)])
        poll_to_end(consumer, fabric)
        running.local.kill()
        follower = Record(TOPIC, fabric.partition_of(TOPIC, run_id), 1, run_id.encode(), b"")
        reason = ly.DEAD_LETTER_REASON_WAITS_FOR_KEY
        consumer._parking.park(follower, reason=reason, detail="it waits", attempts=0)
        before = Deadline(60.0)
        consumer.close()
        assert 60.0 - before.remaining_seconds < 20.0
        assert "the last offsets were not committed" in caplog.text
        running.local.start()
    # What the member submitted last was acknowledged when its publisher closed.
    with Fabric.open(running.settings, member="test") as fabric:
        assert [row.state for row in list_dead_letters(fabric)] == ["parked", "waits"]


def run_on_partition_of(broker: RunningBroker, partition: int) -> str:
    """Return a fresh run id of a partition that a second member will hold."""
    with Fabric.open(broker.settings, member="test") as fabric:
        return run_on_partition(fabric, TOPIC, partition)


def rows_of_group(broker: RunningBroker, group: str) -> list[object]:
    """Return what a group has parked."""
    with Fabric.open(broker.settings, member="test") as fabric:
        return list(rows_of(fabric, group))


def test_partitions_that_were_taken_away_while_held_back_flow_when_they_are_back(fabric: Fabric) -> None:
    """Goal: nothing stays paused for ever. Method: have all partitions revoked while records are held back, then look.

    librdkafka keeps a partition paused across revocation and assignment, and resuming what is held reaches it no more.
    """
    runs = [run_on_partition(fabric, TOPIC, partition) for partition in range(8)]
    group, handler, team = fresh_group(), Poisoned(runs), Team()
    with join(fabric, group, handler) as consumer:
        poll_to_end(consumer, fabric)
        membership, deadline = consumer._membership, Deadline(60.0)
        membership.keep_alive()
        team.start(join(fabric, group, handler, instance="member-1"))
        while membership.positions():  # ends when the other member has joined
            assert not deadline.expired
            membership.keep_alive(0.0)  # Without waiting: the next assignment is not to come in the same call.
        publish_steps(fabric, [(run_id, 0) for run_id in runs])
        poll_until(consumer, lambda: all(handler.handled[run_id] == [0] for run_id in runs), seconds=60.0)
        assert len(consumer.assignment()) == 4, "half of them came back to this member"
    team.stop()
