"""Waiting for commands: who may answer, for how long, when not to wait any more, and what comes too late."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.core.clock import ManualClock
from esper.core.ids import derive_id
from esper.kasmina import RunCommandVerifier
from esper.leyline import EventMessage, Record, type_of
from esper.leyline import messages as ly
from esper.oona import Event
from esper.tolaria import Answer, CommandInbox, DecisionBreaker, RunFenced, RunInterrupted

RUN = "run-inbox"
WINDOW_SECONDS = 60.0
WAIT_SECONDS = 10.0


def event(message: EventMessage, *, offset: int, key: str = RUN, append_time_ms: int = 0) -> Event:
    """Return `message` as a reader hands it out."""
    message.meta.subject = key
    message.meta.type = type_of(message)
    record = Record("topic", 0, offset, key.encode(), b"", (), append_time_ms)
    return Event(record, message.meta, message)  # type: ignore[arg-type]


def answer_to(epoch: int, *, name: str = "c", run_id: str = RUN) -> ly.AdaptationCommand:
    """Return a command that answers the packet of `epoch`."""
    command = ly.AdaptationCommand(
        command_id=f"{name}{epoch}", training_run_id=run_id, epoch=epoch, command_type=ly.COMMAND_CONTINUE
    )
    command.meta.event_id = derive_id(name, epoch)
    command.meta.causation_id = f"state-{epoch}"
    command.meta.time.FromMilliseconds(1000)
    return command


@dataclass
class Script:
    """A source on a manual clock: hands out each event when its time has come, and lets time pass while it waits."""

    clock: ManualClock
    events: list[tuple[float, Event]] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)
    letters: list[tuple[int, str]] = field(default_factory=list)
    offset: int = 0

    def at(self, seconds: float, message: EventMessage, *, key: str = RUN, delay_ms: int = 0) -> int:
        """Let `message` arrive at `seconds`; return its offset."""
        self.offset += 1
        self.events.append((seconds, event(message, offset=self.offset, key=key, append_time_ms=1000 + delay_ms)))
        return self.offset

    def set_aside(self, event: Event, *, reason: ly.DeadLetterReason, detail: str) -> None:
        assert detail
        self.letters.append((event.offset, ly.DeadLetterReason.Name(reason).removeprefix("DEAD_LETTER_REASON_")))

    def read(self, timeout: float) -> Sequence[Event]:
        self.reads.append(timeout)
        now = self.clock.monotonic()
        due = min((seconds for seconds, _ in self.events), default=float("inf"))
        if due > now:
            self.clock.advance(min(timeout, due - now))
        ready = [found for seconds, found in self.events if seconds <= self.clock.monotonic()]
        self.events = [(seconds, found) for seconds, found in self.events if found not in ready]
        return ready


class Scene:
    """An inbox on a script, and the run around it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.script = Script(self.clock)
        self.stop = threading.Event()
        self.inbox = self.fresh_inbox()

    def fresh_inbox(self, *, attempt: int = 1) -> CommandInbox:
        return CommandInbox(
            run_id=RUN,
            attempt=attempt,
            source=self.script,
            judge=RunCommandVerifier(RUN, window_seconds=WINDOW_SECONDS),
            wait_seconds=WAIT_SECONDS,
            stop=self.stop,
            clock=self.clock,
        )

    def packet(self, epoch: int) -> ly.SystemStatePacket:
        packet = ly.SystemStatePacket(training_run_id=RUN, current_epoch=epoch)
        packet.meta.event_id = f"state-{epoch}"
        return packet

    def outcome(self, epoch: int, answer: Answer) -> ly.CommandOutcome:
        outcome = ly.CommandOutcome(
            run_id=RUN,
            epoch=epoch,
            state_event_id=f"state-{epoch}",
            late_commands=answer.late,
            reason=answer.reason,
            result=ly.COMMAND_RESULT_NONE if answer.command is None else ly.COMMAND_RESULT_APPLIED,
        )
        if answer.command is not None:
            outcome.command_id = answer.command.command_id
            outcome.command_event_id = answer.command.meta.event_id
        return outcome

    def epoch(self, epoch: int) -> Answer:
        """Live through one epoch's edge."""
        self.inbox.check()
        self.inbox.fold(self.packet(epoch))
        answer = self.inbox.wait()
        self.inbox.fold(self.outcome(epoch, answer))
        return answer

    def seconds_of(self, epoch: int) -> tuple[Answer, float]:
        began = self.clock.monotonic()
        return self.epoch(epoch), self.clock.monotonic() - began


@pytest.fixture
def scene() -> Scene:
    return Scene()


def late(answer: Answer) -> list[tuple[str, int, str]]:
    return [(command.command_id, command.epoch, command.reason) for command in answer.late]


def test_the_command_for_the_packet_is_handed_out_as_soon_as_it_comes(scene: Scene) -> None:
    """Goal: no epoch waits longer than it must. Method: a command after 3 of 10 seconds."""
    offset = scene.script.at(3.0, answer_to(1))
    answer, seconds = scene.seconds_of(1)
    assert answer.command is not None
    assert (answer.command.command_id, answer.offset, answer.reason) == ("c1", offset, "")
    assert seconds == pytest.approx(3.0)


def test_silence_ends_in_a_timeout(scene: Scene) -> None:
    """Goal: a controller that is away does not stop training. Method: no command at all; short reads throughout."""
    answer, seconds = scene.seconds_of(1)
    assert (answer.command, answer.reason, answer.late) == (None, "timeout", ())
    assert seconds == pytest.approx(WAIT_SECONDS)
    assert max(scene.script.reads) <= 0.2


def test_two_misses_open_the_breaker_until_a_command_is_heard(scene: Scene) -> None:
    """Goal: at most two waits in vain. Method: six epochs; a late command comes after the fourth."""
    waits = []
    for epoch in (1, 2, 3, 4):
        answer, seconds = scene.seconds_of(epoch)
        waits.append((answer.reason, round(seconds, 6)))
    assert waits == [("timeout", 10.0), ("timeout", 10.0), ("breaker_open", 0.0), ("breaker_open", 0.0)]
    scene.script.at(scene.clock.monotonic(), answer_to(2))
    scene.script.at(scene.clock.monotonic() + 4.0, answer_to(5))
    answer, seconds = scene.seconds_of(5)
    assert answer.command is not None
    assert answer.command.command_id == "c5"
    assert late(answer) == [("c2", 2, "late_command")]
    assert seconds == pytest.approx(4.0)
    assert scene.inbox.breaker == DecisionBreaker(0)


def test_one_miss_is_forgiven_by_the_next_command(scene: Scene) -> None:
    """Goal: only misses in a row count. Method: miss, answer, miss, answer."""
    scene.epoch(1)
    scene.script.at(scene.clock.monotonic(), answer_to(2))
    assert scene.epoch(2).command is not None
    assert scene.epoch(3).reason == "timeout"
    assert not scene.inbox.breaker.open


def test_a_late_command_is_listed_once_and_never_applied(scene: Scene) -> None:
    """Goal: a command answers its own packet or none. Method: the answer to epoch 1 comes in epoch 2."""
    scene.epoch(1)
    scene.script.at(scene.clock.monotonic() + 1.0, answer_to(1))
    scene.script.at(scene.clock.monotonic() + 2.0, answer_to(2))
    second = scene.epoch(2)
    assert second.command is not None
    assert second.command.epoch == 2
    assert late(second) == [("c1", 1, "late_command")]
    assert late(scene.epoch(3)) == []


def test_what_arrives_behind_the_answer_is_judged_in_the_next_epoch(scene: Scene) -> None:
    """Goal: the log's order decides between two answers. Method: two commands for one packet in one read."""
    scene.script.at(0.0, answer_to(1))
    scene.script.at(0.0, answer_to(1, name="second"))
    first = scene.epoch(1)
    assert first.command is not None
    assert first.command.command_id == "c1"
    assert late(scene.epoch(2)) == [("second1", 1, "late_command")]


def test_a_producer_that_sat_on_its_command_is_refused(scene: Scene) -> None:
    """Goal: age is judged by the log's own times. Method: append times just within and beyond the window."""
    scene.script.at(0.0, answer_to(1), delay_ms=int(WINDOW_SECONDS * 1000) + 1)
    answer = scene.epoch(1)
    assert (answer.reason, late(answer)) == ("timeout", [("c1", 1, "stale_command")])
    scene.script.at(scene.clock.monotonic(), answer_to(2), delay_ms=int(WINDOW_SECONDS * 1000))
    assert scene.epoch(2).command is not None


def test_other_runs_on_the_partition_are_nothing_to_us(scene: Scene) -> None:
    """Goal: runs that share a partition keep apart. Method: another run's command, claim and failure."""
    other = "run-other"
    scene.script.at(0.0, answer_to(1, run_id=other), key=other)
    scene.script.at(0.0, ly.TrainingRunClaimed(run_id=other, attempt=7), key=other)
    scene.script.at(0.0, ly.TrainingRunFailed(run_id=other), key=other)
    answer = scene.epoch(1)
    assert (answer.command, answer.reason, answer.late) == (None, "timeout", ())
    assert scene.inbox.breaker.misses == 1


def test_a_command_that_names_another_run_does_not_close_the_breaker(scene: Scene) -> None:
    """Goal: only commands of this run count. Method: this run's key, another run inside."""
    scene.epoch(1)
    scene.script.at(scene.clock.monotonic(), answer_to(2, run_id="run-other"))
    answer = scene.epoch(2)
    assert late(answer) == [("c2", 2, "foreign_run")]
    assert scene.inbox.breaker.open


@pytest.mark.parametrize("when", ["before the packet", "while waiting"])
def test_a_higher_claim_fences(scene: Scene, when: str) -> None:
    """Goal: one attempt at a time. Method: a claim of attempt 2 appears; one of attempt 1 changes nothing."""
    scene.script.at(0.0, ly.TrainingRunClaimed(run_id=RUN, attempt=1, worker="tolaria-0"))
    scene.script.at(
        0.0 if when == "before the packet" else 2.0, ly.TrainingRunClaimed(run_id=RUN, attempt=2, worker="x")
    )
    with pytest.raises(RunFenced, match="x claimed attempt 2, this is attempt 1"):
        scene.epoch(1)


def test_a_run_that_was_given_up_is_left(scene: Scene) -> None:
    """Goal: whoever declared this worker dead is believed. Method: a failure of the run appears."""
    scene.script.at(1.0, ly.TrainingRunFailed(run_id=RUN, attempt=1, reason="worker_lost"))
    with pytest.raises(RunFenced, match="given up: worker_lost"):
        scene.epoch(1)


def test_a_stop_ends_the_wait(scene: Scene) -> None:
    """Goal: SIGTERM does not wait for a command. Method: stop is set before the wait."""
    scene.inbox.fold(scene.packet(1))
    scene.stop.set()
    with pytest.raises(RunInterrupted):
        scene.inbox.wait()


def test_a_successor_takes_up_where_the_log_ends(scene: Scene) -> None:
    """Goal: a restart re-opens nothing. Method: a new inbox, told the past, reads all commands again."""
    scene.script.at(0.0, answer_to(1))
    scene.epoch(1)
    scene.epoch(2)
    scene.script.at(scene.clock.monotonic(), answer_to(2))
    third = scene.epoch(3)
    assert (third.reason, late(third)) == ("timeout", [("c2", 2, "late_command")])
    outcomes = [
        scene.outcome(1, Answer(command=answer_to(1))),
        scene.outcome(2, Answer(reason="timeout")),
        scene.outcome(3, third),
    ]
    expected, scene.inbox = scene.inbox.breaker, scene.fresh_inbox(attempt=2)
    scene.inbox.recover([scene.packet(epoch) for epoch in (1, 2, 3, 4)], outcomes)
    assert scene.inbox.breaker == expected
    for message in (answer_to(1), answer_to(2), answer_to(4)):
        scene.script.at(scene.clock.monotonic(), message)
    answer = scene.inbox.wait()
    assert answer.command is not None
    assert answer.command.command_id == "c4"
    assert late(answer) == []


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12))
def test_the_breaker_is_a_fold_of_the_outcomes(plan: list[tuple[bool, bool]]) -> None:
    """Goal: a successor's breaker stands as the dead one's did. Method: random answers and late commands."""
    scene, folded = Scene(), DecisionBreaker()
    for epoch, (answered, belated) in enumerate(plan, start=1):
        if belated and epoch > 1:
            scene.script.at(scene.clock.monotonic(), answer_to(epoch - 1, name="late"))
        if answered:
            scene.script.at(scene.clock.monotonic(), answer_to(epoch))
        folded = folded.fold(scene.outcome(epoch, scene.epoch(epoch)))
        assert folded == scene.inbox.breaker


def order(first: int, last: int, *, name: str = "order") -> ly.AdaptationCommand:
    """Return an operator's command for the epochs from `first` to `last`."""
    command = ly.AdaptationCommand(command_id=name, training_run_id=RUN, first_epoch=first, last_epoch=last)
    command.meta.event_id = derive_id(name)
    command.meta.source = "cli"
    command.meta.time.FromMilliseconds(1000)
    return command


def name_of(answer: Answer) -> str:
    return answer.command.command_id if answer.command is not None else answer.reason


def test_an_operator_s_command_waits_for_its_epoch_and_goes_before_the_answer(scene: Scene) -> None:
    """Goal: an order is applied at the first edge that it names. Method: one for 2 to 3, answers to all four."""
    scene.script.at(0.0, order(2, 3))
    found = []
    for epoch in (1, 2, 3, 4):
        scene.script.at(scene.clock.monotonic(), answer_to(epoch))
        found.append(scene.epoch(epoch))
    assert [name_of(answer) for answer in found] == ["c1", "order", "c3", "c4"]
    assert [late(answer) for answer in found] == [[], [], [("c2", 2, "late_command")], []]


def test_an_order_whose_epochs_pass_is_listed_as_late(scene: Scene) -> None:
    """Goal: no order lives on beyond its epochs. Method: it comes in epoch 2 and names epoch 1 only."""
    scene.epoch(1)
    scene.script.at(scene.clock.monotonic(), order(1, 1))
    assert late(scene.epoch(2)) == [("order", 0, "late_command")]


def test_a_waiting_order_survives_its_worker(scene: Scene) -> None:
    """Goal: an order is a matter of the log, not of a process. Method: read by one inbox, applied by the next."""
    scene.script.at(0.0, order(3, 3))
    outcomes = [scene.outcome(epoch, scene.epoch(epoch)) for epoch in (1, 2)]
    scene.inbox, scene.script.offset = scene.fresh_inbox(attempt=2), 0
    scene.inbox.recover([scene.packet(1), scene.packet(2)], outcomes)
    scene.script.at(scene.clock.monotonic(), order(3, 3))
    assert name_of(scene.epoch(3)) == "order"
    assert name_of(scene.epoch(4)) in ("timeout", "breaker_open")


def test_copies_are_set_aside_and_never_applied(scene: Scene) -> None:
    """Goal: one use for each command. Method: an order and an answer come again, the same event or under another."""
    first, answered = scene.script.at(0.0, order(1, 9)), scene.script.at(0.0, answer_to(2))
    assert name_of(scene.epoch(1)) == "order"
    assert name_of(scene.epoch(2)) == "c2"
    again, renamed = order(1, 9), order(1, 9)
    renamed.meta.event_id = "another-event"
    copies = [scene.script.at(scene.clock.monotonic(), message) for message in (again, renamed, answer_to(2))]
    third = scene.epoch(3)
    assert name_of(third) == "timeout"
    assert late(third) == [("order", 0, "nonce_replayed")]
    assert scene.script.letters == [(copies[0], "REPLAYED"), (copies[2], "REPLAYED"), (copies[1], "REPLAYED")]
    assert min(copies) > max(first, answered)


def test_a_flood_of_refused_commands_is_counted_and_its_listing_ends(scene: Scene) -> None:
    """Goal: an outcome stays small enough to append. Method: 5,000 stale orders and one good answer in one epoch."""
    for number in range(5_000):
        scene.script.at(0.0, order(1, 9, name=f"flood-{number}"), delay_ms=3 * 86_400_000)
    scene.script.at(0.0, answer_to(1))
    answer = scene.epoch(1)
    assert name_of(answer) == "c1"
    assert (len(answer.late), answer.unlisted) == (100, 4_900)
    assert len(scene.script.letters) == 5_000
    assert {reason for _, reason in scene.script.letters} == {"STALE"}
    assert (len(scene.epoch(2).late), scene.epoch(2).unlisted) == (0, 0)
