"""Parked keys on a real broker: redriven and discarded in order, whoever dies or comes in between.

Run as a program, this file is a member that kills itself at a given step of a redrive.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, TopicPartition

from esper.core.clock import Deadline
from esper.core.errors import EsperError, OperationFailed, UsageError
from esper.core.ids import new_run_id
from esper.core.rng import derive_seed
from esper.core.settings import load_settings
from esper.leyline import messages as ly
from esper.oona import Consumer, Event, Fabric, LetterBoard, discard, list_dead_letters, redrive, show_dead_letter
from esper.oona.letters import _redrive as redrive_module
from esper.oona.letters._dead_letters import DeadLetterWriter
from esper.oona.letters._parking_log import Parking
from tests.campaigns import WHOLE
from tests.conftest import RunningBroker
from tests.oona.letters.parking import (
    TOPIC,
    Poisoned,
    join,
    order_all,
    poll_until_nothing_is_parked,
    publish_steps,
    rows_of,
)
from tests.oona.log import append, fresh_group, poll_to_end, poll_until, read_run, run_on_partition

REPOSITORY = Path(__file__).resolve().parents[3]
Note = Callable[[str, object], None]


def epochs_of(*runs: str, epochs: int) -> list[tuple[str, int]]:
    """Return (run, epoch) of all runs, epoch by epoch."""
    return [(run_id, epoch) for epoch in range(epochs) for run_id in runs]


def parked_reference(fabric: Fabric, group: str) -> tuple[str, int, int]:
    """Return the place of the only record that a group has parked."""
    (row,) = [row for row in rows_of(fabric, group) if row.state == "parked"]
    return (row.topic, row.partition, row.offset)


def test_redrive_handles_the_parked_one_and_its_followers_in_order(fabric: Fabric) -> None:
    """After the fix all is as without poison: park epoch 1 of four, mend, redrive, go on; look at every row."""
    run_id, group = new_run_id(), fresh_group()
    handler = Poisoned([run_id], [(run_id, 1)])
    publish_steps(fabric, epochs_of(run_id, epochs=4))
    with join(fabric, group, handler) as consumer:
        poll_to_end(consumer, fabric)
        assert handler.handled[run_id] == [0]
        rows = rows_of(fabric, group)
        assert [(row.state, row.reason, row.waits_for) for row in rows] == [
            ("parked", "HANDLER_FAILED", None),
            ("waits", "WAITS_FOR_KEY", rows[0].offset),
            ("waits", "WAITS_FOR_KEY", rows[0].offset),
        ]
        handler.poison.clear()
        assert order_all(fabric, group) == 1
        publish_steps(fabric, [(run_id, 4)])
        poll_until(consumer, lambda: handler.handled[run_id] == [0, 1, 2, 3, 4])
        poll_to_end(consumer, fabric)
        assert consumer.metrics().parked_keys == 0
        publish_steps(fabric, [(run_id, 5)])
        poll_until(consumer, lambda: 5 in handler.handled[run_id])
    assert handler.handled[run_id] == [0, 1, 2, 3, 4, 5]
    assert {row.state for row in rows_of(fabric, group)} == {"redriven"}
    assert [row for row in list_dead_letters(fabric) if row.group == group] == []
    assert len([row for row in list_dead_letters(fabric, ended=True) if row.group == group]) >= 3


def parked_steps(fabric: Fabric, group: str) -> list[tuple[str, int]]:
    """Return (letter, offset) of what a group has parked, without what waits or is ordered."""
    board = LetterBoard.read(fabric)
    rows = [row for row in board.rows() if row.group == group and row.state == "parked"]
    found = [(row.offset, board.parked(group, (row.topic, row.partition, row.offset))) for row in rows]
    return [(record.letter_id, offset) for offset, record in found if record is not None]


def test_what_fails_again_waits_for_another_order(fabric: Fabric) -> None:
    """An order without a fix changes nothing: redrive while the poison is there, then mend and redrive."""
    run_id, group = new_run_id(), fresh_group()
    handler = Poisoned([run_id], [(run_id, 0), (run_id, 2)])
    publish_steps(fabric, epochs_of(run_id, epochs=4))
    with join(fabric, group, handler) as consumer:
        poll_to_end(consumer, fabric)
        ((first, offset),) = parked_steps(fabric, group)
        order_all(fabric, group)
        poll_until(consumer, lambda: [at for letter, at in parked_steps(fabric, group) if letter != first] == [offset])
        assert handler.handled[run_id] == []
        handler.poison.discard((run_id, 0))
        order_all(fabric, group)
        # Epoch 2 is poison, too: it becomes what epoch 3 waits for.
        poll_until(consumer, lambda: [at for _, at in parked_steps(fabric, group) if at > offset] != [])
        assert handler.handled[run_id] == [0, 1]
        assert consumer.metrics().parked_records == 2
        handler.poison.clear()
        order_all(fabric, group)
        poll_until_nothing_is_parked(consumer)
    assert handler.handled[run_id] == [0, 1, 2, 3]


def test_discarded_record_is_skipped_and_its_followers_go_on(fabric: Fabric) -> None:
    """Giving up one event frees its key: park epoch 0 of three, discard it, with a note."""
    run_id, group = new_run_id(), fresh_group()
    handler = Poisoned([run_id], [(run_id, 0)])
    publish_steps(fabric, epochs_of(run_id, epochs=3))
    with join(fabric, group, handler) as consumer:
        poll_to_end(consumer, fabric)
        reference = parked_reference(fabric, group)
        with fabric.publisher("cli") as publisher:
            order = discard(LetterBoard.read(fabric), publisher, reference, note="a bug of last week")
        assert (order.group, order.waiting) == (group, 2)
        poll_until_nothing_is_parked(consumer)
    assert handler.handled[run_id] == [1, 2]
    assert [row.state for row in rows_of(fabric, group)] == ["discarded", "redriven", "redriven"]
    assert f"{group}: discarded" in show_dead_letter(fabric, *reference).states


def test_groups_park_apart(fabric: Fabric) -> None:
    """What one group cannot handle another can: two groups park the same record, one of them is redriven."""
    run_id, groups = new_run_id(), [fresh_group(), fresh_group()]
    handlers = [Poisoned([run_id], [(run_id, 0)]) for _ in groups]
    publish_steps(fabric, epochs_of(run_id, epochs=2))
    with join(fabric, groups[0], handlers[0]) as first, join(fabric, groups[1], handlers[1]) as second:
        poll_to_end(first, fabric)
        poll_to_end(second, fabric)
        reference = parked_reference(fabric, groups[0])
        with fabric.publisher("cli") as publisher:
            board = LetterBoard.read(fabric)
            with pytest.raises(UsageError, match="Name one with --group"):
                redrive(board, publisher, reference)
            with pytest.raises(UsageError, match="cannot be redriven by itself"):
                redrive(board, publisher, (*reference[:2], rows_of(fabric, groups[0])[1].offset), group=groups[0])
            with pytest.raises(UsageError, match="has not parked"):
                redrive(board, publisher, reference, group="nobody")
            with pytest.raises(UsageError, match="neither parked nor set aside"):
                discard(board, publisher, ("runs", 0, 10**9))
            handlers[0].poison.clear()
            redrive(board, publisher, reference, group=groups[0])
        poll_until_nothing_is_parked(first)
        poll_to_end(second, fabric)
        assert second.metrics().parked_records == 2
    assert handlers[0].handled[run_id] == [0, 1]
    assert handlers[1].handled[run_id] == []


def test_replayed_letters_and_orders_change_nothing(fabric: Fabric) -> None:
    """Old bytes are no new orders: append copies of all letters, orders and ends; the key stays as it is."""
    run_id, group = new_run_id(), fresh_group()
    handler = Poisoned([run_id], [(run_id, 0)])
    publish_steps(fabric, epochs_of(run_id, epochs=2))
    with join(fabric, group, handler) as consumer:
        poll_to_end(consumer, fabric)
        reference = parked_reference(fabric, group)
        order_all(fabric, group)
        poll_until(consumer, lambda: len(LetterBoard.read(fabric).events(reference)) == 2)
        with fabric.reader({("dead-letters", 0): "begin"}) as reader:
            mine = [event.record for event in reader.read_to_end() if event.message.consumer_group == group]  # type: ignore[attr-defined]
        assert len(mine) == 4, "two failures, one follower, one order"
        append(fabric, mine)
        handler.poison.clear()
        poll_to_end(consumer, fabric)
        assert consumer.metrics().parked_records == 2
        assert handler.handled[run_id] == []
    with join(fabric, group, handler) as consumer:
        poll_to_end(consumer, fabric)
        assert consumer.metrics().parked_records == 2
        order_all(fabric, group)
        poll_until_nothing_is_parked(consumer)
    assert handler.handled[run_id] == [0, 1]


def test_forged_record_of_a_parked_key_does_not_wait_and_is_given_up(fabric: Fabric) -> None:
    """Only authentic events wait: append a forged record behind a parked one; it is set aside, then discarded."""
    run_id, group = new_run_id(), fresh_group()
    publish_steps(fabric, [(run_id, 0)])
    (genuine,) = read_run(fabric, TOPIC, run_id)
    with join(fabric, group, Poisoned([run_id], [(run_id, 0)])) as consumer:
        poll_to_end(consumer, fabric)
        (forged,) = append(fabric, [genuine.record.__class__(TOPIC, genuine.partition, -1, run_id.encode(), b"forged")])
        poll_to_end(consumer, fabric)
        assert consumer.metrics().parked_records == 1
    reference = (TOPIC, forged.partition, forged.offset)
    with fabric.publisher("cli") as publisher:
        with pytest.raises(UsageError, match="must not be believed"):
            redrive(LetterBoard.read(fabric), publisher, reference)
        discard(LetterBoard.read(fabric), publisher, reference)
    found = [
        row for row in list_dead_letters(fabric, ended=True) if (row.topic, row.partition, row.offset) == reference
    ]
    assert [(row.state, row.group, row.reason) for row in found] == [("discarded", "", "UNSIGNED")]


def test_paused_member_redrives_nothing_until_it_resumes(fabric: Fabric) -> None:
    """Who takes no records takes no parked ones: pause, order a redrive, poll, resume."""
    run_id, group = new_run_id(), fresh_group()
    handler = Poisoned([run_id], [(run_id, 0)])
    publish_steps(fabric, epochs_of(run_id, epochs=2))
    with join(fabric, group, handler) as consumer:
        poll_to_end(consumer, fabric)
        handler.poison.clear()
        consumer.pause()
        order_all(fabric, group)
        assert sum(consumer.poll(0.2) for _ in range(5)) == 0
        assert handler.handled[run_id] == []
        consumer.resume()
        poll_until_nothing_is_parked(consumer)
    assert handler.handled[run_id] == [0, 1]


def test_record_that_is_gone_stays_parked_until_it_is_given_up(scratch: Fabric) -> None:
    """What cannot be read again cannot be redriven: park telemetry, delete it, redrive, discard it."""
    group, broken, seen = fresh_group(), [True], list[int]()

    def handler(event: Event) -> None:
        if broken and event.meta.subject == group:
            raise ZeroDivisionError("poison")
        seen.append(event.offset)

    consumer = scratch.consumer(
        group=group,
        instance="m-0",
        topics=["telemetry"],
        handlers={ly.TelemetryPacket: handler},
        publisher=scratch.publisher("nissa"),
    )
    with consumer, scratch.publisher("nissa") as publisher:
        offsets = [publisher.publish(ly.TelemetryPacket(), key=group).offset for _ in range(2)]
        poll_to_end(consumer, scratch)
        for future in scratch.cluster.admin.delete_records([TopicPartition("telemetry", 0, offsets[1])]).values():
            future.result(timeout=30)
        broken.clear()
        ((first, _),) = parked_steps(scratch, group)
        order_all(scratch, group)
        poll_until(consumer, lambda: [letter for letter, _ in parked_steps(scratch, group)] not in ([], [first]))
        assert "holds the record no longer" in show_dead_letter(scratch, "telemetry", 0, offsets[0]).detail
        discard(LetterBoard.read(scratch), publisher, ("telemetry", 0, offsets[0]), group=group)
        poll_until_nothing_is_parked(consumer)
    assert [offset for offset in seen if offset in offsets] == offsets[1:]


def test_too_many_parked_keys_stop_the_member_until_somebody_mends_them(broker: RunningBroker, fabric: Fabric) -> None:
    """A limit is a limit: three poisoned keys with room for two; the third is parked by nobody and lost by nobody."""
    runs, group = [new_run_id() for _ in range(3)], fresh_group()
    handler = Poisoned(runs, epochs_of(*runs, epochs=1))
    publish_steps(fabric, epochs_of(*runs, epochs=1))
    settings = broker.settings.model_copy(update={"parked_keys_max": 2})
    with Fabric.open(settings, member="test") as strict:
        for _ in range(2):  # The next life stops at the same event.
            with (
                join(strict, group, handler) as consumer,
                pytest.raises(OperationFailed, match=r"ESPER_PARKED_KEYS_MAX.*esper dlq"),
            ):
                poll_to_end(consumer, fabric)
        handler.poison.clear()
        assert order_all(fabric, group) == 2
        with join(strict, group, handler) as consumer:
            poll_to_end(consumer, fabric)
            poll_until_nothing_is_parked(consumer)
    assert handler.handled == {run_id: [0] for run_id in runs}


def test_consume_breaker_holds_records_back_until_a_probe_succeeds(broker: RunningBroker, fabric: Fabric) -> None:
    """A broken handler parks a few keys and not all: break it for 12 keys with a limit of 3, then mend it."""
    runs, group = [new_run_id() for _ in range(12)], fresh_group()
    handler = Poisoned(runs, epochs_of(*runs, epochs=1))
    settings = broker.settings.model_copy(update={"consume_failures_max": 3, "consume_open_seconds": 2.0})
    with Fabric.open(settings, member="test") as strict, join(strict, group, handler) as consumer:
        poll_to_end(consumer, fabric)
        publish_steps(fabric, epochs_of(*runs, epochs=1))
        poll_until(consumer, lambda: consumer.metrics().breaker == "OPEN")
        assert consumer.metrics().parked_keys == 3
        assert consumer.poll(0.1) == 0
        poll_until(consumer, lambda: consumer.metrics().parked_keys == 4)
        assert consumer.metrics().breaker == "OPEN", "a failed probe opens it again"
        handler.poison.clear()
        poll_until(consumer, lambda: handler.count == 8)
        assert consumer.metrics().breaker == "CLOSED"
        assert order_all(fabric, group) == 4
        poll_until_nothing_is_parked(consumer)
    assert handler.handled == {run_id: [0] for run_id in runs}


def test_member_whose_place_is_another_s_parks_nothing(fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the holder of a partition parks: refuse one commit as Kafka refuses a former member's; it joins anew."""
    run_id, group = new_run_id(), fresh_group()
    handler = Poisoned([run_id], [(run_id, 0)])
    with join(fabric, group, handler) as consumer:
        poll_to_end(consumer, fabric)
        place = (TOPIC, fabric.partition_of(TOPIC, run_id))
        assert consumer._membership.confirm(place)
        begin = consumer._membership._begin_commit
        refusals = list[int]()

        def refuse(*, seconds: float | None = None) -> None:
            monkeypatch.setattr(consumer._membership, "_begin_commit", begin)
            refusals.append(len(rows_of(fabric, group)))
            consumer._membership._uncommitted.clear()
            consumer._membership._on_commit(KafkaError(KafkaError.ILLEGAL_GENERATION), [TopicPartition(*place, 0)])

        monkeypatch.setattr(consumer._membership, "confirm", confirming(consumer, monkeypatch, refuse))
        publish_steps(fabric, epochs_of(run_id, epochs=2))
        poll_until(consumer, lambda: refusals == [0] and consumer.metrics().parked_records == 2)
    assert [row.state for row in rows_of(fabric, group)] == ["parked", "waits"]
    assert handler.handled[run_id] == [], "the follower did not overtake while the member was away"


def confirming(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch, refuse: Callable[..., None]
) -> Callable[[tuple[str, int]], bool]:
    """Return a `confirm` whose first commit is refused."""
    confirm = consumer._membership.confirm

    def first(place: tuple[str, int]) -> bool:
        monkeypatch.setattr(consumer._membership, "confirm", confirm)
        monkeypatch.setattr(consumer._membership, "_begin_commit", refuse)
        return confirm(place)

    return first


def run_in_thread(consumer: Consumer, stop: threading.Event, failures: list[EsperError]) -> threading.Thread:
    """Start a thread that runs a member until `stop`."""

    def work() -> None:
        try:
            consumer.run(stop)
        except EsperError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_rebalance_in_the_middle_of_a_redrive_keeps_order(fabric: Fabric) -> None:
    """A partition moves while its key is redriven: a second member joins after a few of 60 records."""
    run_id, group = run_on_partition(fabric, TOPIC, 6), fresh_group()
    lock, order, second_joined = threading.Lock(), list[tuple[str, int]](), threading.Event()

    class Slow(Poisoned):
        name = ""

        def __call__(self, event: Event) -> None:
            before = len(self.handled[run_id])
            super().__call__(event)
            if len(self.handled[run_id]) > before:
                with lock:
                    order.append((self.name, self.handled[run_id][-1]))
                if len(order) == 10:  # In mid-redrive: go on when the other one has come.
                    assert second_joined.wait(30)

    handlers = [Slow([run_id], [(run_id, 0)]), Slow([run_id])]
    handlers[0].name, handlers[1].name = "member-0", "member-1"
    publish_steps(fabric, epochs_of(run_id, epochs=60))
    first = join(fabric, group, handlers[0])
    poll_to_end(first, fabric)
    handlers[0].poison.clear()
    order_all(fabric, group)
    stop, failures = threading.Event(), list[EsperError]()
    threads = [run_in_thread(first, stop, failures)]
    wait_for(lambda: len(order) >= 10)
    second = join(fabric, group, handlers[1], instance="member-1")
    threads.append(run_in_thread(second, stop, failures))
    second_joined.set()
    wait_for(lambda: len({epoch for _, epoch in order}) == 60, seconds=60)
    wait_for(lambda: (TOPIC, 6) in second.assignment(), seconds=60)
    publish_steps(fabric, [(run_id, 60)])
    wait_for(lambda: ("member-1", 60) in order, seconds=60)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert [epoch for _, epoch in order] == list(range(61)), "none twice, none before its turn"


def wait_for(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    """Wait until `condition` holds; fail at the deadline."""
    deadline, never = Deadline(seconds), threading.Event()
    while not condition():
        assert not deadline.expired, f"not within {seconds} seconds"
        never.wait(0.02)


# A member that is killed between two steps -------------------------------------------------------------------

#: Where the member dies: (what is called, before or after it, at its n-th call).
KILLS = (
    ("handle", "before", 1),
    ("handle", "after", 1),
    ("release", "after", 1),
    ("settle", "before", 2),
    ("settle", "after", 2),
    ("handle", "after", 3),
    ("release", "before", 2),
)


def die() -> None:
    """End this process as SIGKILL does."""
    os.kill(os.getpid(), signal.SIGKILL)


def dying(function: Callable[..., Any], when: str, count: int) -> Callable[..., Any]:
    """Return `function`, which kills this process before or after its n-th call."""
    calls = 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and when == "before":
            die()
        answer = function(*arguments, **named)
        if calls == count and when == "after":
            die()
        return answer

    return wrapped


def work(home: str, group: str, effects: str, run_id: str, kill: str) -> None:
    """Handle a run until its last epoch; each effect is one line of a file; die where `kill` says."""
    out = os.open(effects, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def handle(event: Event) -> None:
        if event.meta.subject == run_id:
            os.write(out, f"{cast('ly.SystemStatePacket', event.message).current_epoch}\n".encode())

    what, when, count = kill.split(",") if kill else ("", "", "0")
    if what == "settle":
        DeadLetterWriter.settle = dying(DeadLetterWriter.settle, when, int(count))  # type: ignore[method-assign]
    elif what == "release":
        Parking.release = dying(Parking.release, when, int(count))  # type: ignore[method-assign]
    mine = dying(handle, when, int(count)) if what == "handle" else handle

    def handler(event: Event) -> None:
        if event.meta.subject == run_id:
            mine(event)

    # Turns of four records, so that one life sees several of them.
    redrive_module._TURN_RECORDS = 4  # type: ignore[misc]
    with Fabric.open(load_settings(_env_file=None, home=home), member="tamiyo-0") as fabric:
        consumer = fabric.consumer(
            group=group,
            instance="member-0",
            topics=[TOPIC],
            handlers={ly.SystemStatePacket: handler},
            publisher=fabric.publisher("tamiyo"),
        )
        poll_to_end(consumer, fabric)
        poll_until_nothing_is_parked(consumer)
        consumer.close()


@pytest.mark.campaign
def test_a_member_killed_between_any_two_steps_of_a_redrive_loses_and_overtakes_nothing(
    broker: RunningBroker, fabric: Fabric, tmp_path: Path, record_property: Note
) -> None:
    """Goal: whatever moment a SIGKILL takes, each event is handled, in its order, and repeats only what was open.

    Method: park a key, order its redrive, kill one process after the other at each step; the last one lives.
    """
    run_id, group, effects = new_run_id(), fresh_group(), tmp_path / "effects"
    publish_steps(fabric, epochs_of(run_id, epochs=24))
    with join(fabric, group, Poisoned([run_id], [(run_id, 0)])) as consumer:
        poll_to_end(consumer, fabric)
    order_all(fabric, group)
    codes = []
    for kill in (*KILLS, None):
        name = ",".join(map(str, kill)) if kill else ""
        arguments = [str(broker.settings.home), group, str(effects), run_id, name]
        command = [sys.executable, "-m", "tests.oona.letters.test_redrive", *arguments]
        run = subprocess.run(command, cwd=REPOSITORY, env=broker.environment, timeout=120, check=False)
        codes.append(run.returncode)
    assert codes[-1] == 0
    assert codes[:-1] == [-signal.SIGKILL] * len(KILLS), "each step was reached"
    seen = list(map(int, effects.read_text().split()))
    firsts = list(dict.fromkeys(seen))
    assert firsts == list(range(24)), "none is lost, none comes before its turn"
    for before, after in pairwise(seen):
        assert after <= before + 1, "a repeat goes on in order"
    with join(fabric, group, late := Poisoned([run_id])) as consumer:
        poll_to_end(consumer, fabric)
    assert late.handled[run_id] == [], "what was redriven is not handled again"
    assert {row.state for row in rows_of(fabric, group)} == {"redriven"}
    record_property("kills", len(KILLS))
    record_property("effects_repeated", len(seen) - 24)


# One per cent of poison --------------------------------------------------------------------------------------


@pytest.mark.campaign
def test_one_per_cent_of_poison_delays_nobody_and_leaves_no_trace_after_the_redrive(
    fabric: Fabric, record_property: Note, request: pytest.FixtureRequest
) -> None:
    """Goal: healthy keys never wait, no follower overtakes, and a redrive gives what a run without poison gives.

    Method: 1 % authentic poison over many keys (whole: 1,000), a restart before the redrive and new events in it;
    compare each key's sequence with that of a group that knows no poison.
    """
    seed = request.config.getoption("randomly_seed", 0)
    random = Random(derive_seed(int(seed), "parking"))  # noqa: S311 - a seeded campaign
    keys, epochs = (1_000, 20) if WHOLE else (80, 10)
    runs, group = [new_run_id() for _ in range(keys)], fresh_group()
    steps = epochs_of(*runs, epochs=epochs)
    poison = set(random.sample(steps, len(steps) // 100))
    poisoned = {run_id for run_id, _ in poison}
    handler = Poisoned(runs, poison)
    publish_steps(fabric, steps)
    with join(fabric, group, handler) as consumer:
        poll_until(consumer, lambda: bool(consumer.assignment()))
        poll_to_end(consumer, fabric, seconds=300)
        assert consumer.metrics().parked_keys == len(poisoned)
    for run_id in runs:
        first = min((epoch for key, epoch in poison if key == run_id), default=epochs)
        assert handler.handled[run_id] == list(range(first)), f"seed {seed}"
    handler.poison.clear()
    with join(fabric, group, handler) as consumer:
        poll_to_end(consumer, fabric, seconds=300)
        waiting = consumer.metrics().parked_records
        assert order_all(fabric, group) == len(poisoned)
        publish_steps(fabric, [(run_id, epochs) for run_id in runs])
        poll_until(consumer, lambda: handler.count == len(steps) + keys, seconds=300)
        poll_to_end(consumer, fabric, seconds=60)
        poll_until_nothing_is_parked(consumer)
    clean = Poisoned(runs)
    with join(fabric, fresh_group(), clean) as consumer:
        poll_to_end(consumer, fabric, seconds=300)
    assert handler.handled == clean.handled
    assert clean.handled == {run_id: list(range(epochs + 1)) for run_id in runs}
    for name, value in {"seed": seed, "keys": keys, "events": len(steps), "poison": len(poison)}.items():
        record_property(name, value)
    record_property("records_parked_or_waiting", waiting)


if __name__ == "__main__":
    work(*sys.argv[1:])
