"""The fold: what of a run's past counts, in whatever order and however often it is read."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.core.ids import derive_id
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.tamiyo import RunState, decide, fold
from esper.tamiyo._due import reports_due
from esper.tamiyo._ledger import RunLedger
from esper.tamiyo._observation import improvement_per_epoch, loss_delta
from tests.tamiyo.scripted_run import ScriptedRun

TOPICS = {
    ly.TrainingRunRequested: "run-requests",
    ly.SystemStatePacket: "system-state",
    ly.DecisionMade: "decisions",
    ly.AdaptationCommand: "adaptation-commands",
    ly.FieldReport: "field-reports",
}


def history(epochs: int = 10) -> dict[str, list[EventMessage]]:
    """Return the log of one whole run by topic."""
    run = ScriptedRun("run-log", epochs=epochs)
    log: dict[str, list[EventMessage]] = {topic: [] for topic in (*TOPICS.values(), "runs")}
    state = RunState("run-log")

    def append(event: EventMessage) -> None:
        nonlocal state
        log[TOPICS.get(type(event), "runs")].append(event)
        state = fold(state, event)

    append(run.request())
    append(ly.TrainingRunClaimed(meta=ly.EventMeta(subject="run-log"), run_id="run-log", attempt=1))
    for _ in range(epochs):
        append(run.next_packet())
        decision = decide(state, state.packets[run.epoch])
        decision.command.meta.subject = "run-log"
        append(decision.made)
        append(decision.command)
        append(run.apply(decision.command))
        for report in reports_due(state):
            append(report)
    append(run.finished())
    for report in reports_due(state):
        append(report)
    return log


LOG = history()


def replay(order: list[str], repeats: list[str]) -> RunState:
    """Fold the log with its topics interleaved as `order` says; each of `repeats` delivers a record once more."""
    left = {topic: list(events) for topic, events in LOG.items()}
    state = RunState("run-log")
    again = list(repeats)
    for topic in order:
        event = left[topic].pop(0)
        state = fold(state, event)
        if again and again[0] == topic:
            again.pop(0)
            state = fold(state, event)
    assert not any(left.values())
    return state


SEQUENCE = [topic for topic, events in LOG.items() for _ in events]


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(SEQUENCE), repeats=st.lists(st.sampled_from(sorted(LOG)), max_size=8))
def test_topics_may_interleave_and_repeat_as_they_like(order: list[str], repeats: list[str]) -> None:
    """Only the order within a topic's partition counts: shuffle the topics, repeat records, compare the states."""
    assert replay(order, repeats) == replay(SEQUENCE, [])


def test_the_first_packet_of_an_epoch_counts() -> None:
    """Two attempts may append one epoch; the lower offset wins, and the other changes nothing."""
    run = ScriptedRun("run-twice", epochs=5)
    packet = run.next_packet()
    other = ly.SystemStatePacket()
    other.CopyFrom(packet)
    other.validation_loss = 99.0
    state = fold(fold(RunState("run-twice"), packet), other)
    assert state.packets[1].validation_loss == packet.validation_loss


def test_a_command_without_a_decision_is_not_tamiyos() -> None:
    """People may order too; their commands answer no decision."""
    state = RunState("run-people")
    assert fold(state, ly.AdaptationCommand(command_id="c", training_run_id="run-people")) == state


def test_a_fenced_attempt_ends_nothing() -> None:
    """A failure of attempt 1 that is appended after attempt 2 was claimed must not end the run."""
    run = ScriptedRun("run-fenced", epochs=5)
    state = fold(RunState("run-fenced"), run.next_packet())
    state = fold(state, ly.TrainingRunClaimed(run_id="run-fenced", attempt=2))
    assert not fold(state, run.failed()).ended
    second = run.failed()
    second.attempt = 2
    assert fold(state, second).ended


def test_an_end_waits_for_the_packets_that_it_counts() -> None:
    """The end is in another topic than the packets and may be read first; the run is over when both are there."""
    run = ScriptedRun("run-ahead", epochs=2)
    first, second = run.next_packet(), run.next_packet()
    state = fold(fold(RunState("run-ahead"), first), run.finished())
    assert not state.ended
    assert fold(state, second).ended


def test_a_closed_run_stays_closed() -> None:
    """After its last report a run shrinks to its name, and records that are delivered again begin nothing."""
    ledger = RunLedger()
    for topic in LOG:
        for event in LOG[topic]:
            event.meta.subject = "run-log"
            ledger.fold(event)
    assert list(ledger) == ["run-log"]
    assert ledger.close_if_settled("run-log")
    assert len(ledger) == 0
    assert ledger.fold(LOG["system-state"][0]) is None
    assert ledger.state("run-log") is None
    assert not ledger.close_if_settled("run-log")


def test_unrelated_events_change_nothing() -> None:
    """Events of subscribed topics that Tamiyo has no use for are folded to nothing."""
    state = RunState("run-other")
    started = ly.TrainingRunStarted(meta=ly.EventMeta(event_id=derive_id("x"), subject="run-other"), run_id="run-other")
    assert fold(state, started) is state


def test_epochs_that_a_return_left_behind_are_no_history() -> None:
    """Goal: progress is that of the network that is trained. Method: packets of a run that spiked at epoch 5 and went
    back to epoch 3; the epochs after it follow on that one, and the spike is in nobody's trend."""
    losses = {1: 2.0, 2: 1.8, 3: 1.6, 4: 1.5, 5: 90.0, 6: 1.4, 7: 1.3}
    run, state = ScriptedRun("run-back"), RunState("run-back")
    for epoch, loss in losses.items():
        packet = run.next_packet()
        packet.validation_loss = loss
        packet.follows_epoch = 3 if epoch == 6 else 0
        state = fold(state, packet)
    assert [packet.epoch for packet in state.history(5)] == [1, 2, 3, 4, 5]
    assert [packet.epoch for packet in state.history(7)] == [1, 2, 3, 6, 7]
    fall = improvement_per_epoch(state.history(7))
    assert fall == pytest.approx((1.0 - 1.3 / 2.0) / 4), "four epochs lead from the first to here"
    assert loss_delta(state.history(6)) == pytest.approx(1.4 - 1.6)
