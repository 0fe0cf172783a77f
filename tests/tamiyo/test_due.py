"""What is owed to the log after any interruption: the control loop's rules for a restart."""

from __future__ import annotations

import pytest

from esper.leyline import messages as ly
from esper.tamiyo import RunState, decide, fold
from esper.tamiyo._due import command_to_send, packet_to_decide, reports_due, settled
from tests.tamiyo.scripted_run import ScriptedRun


def begun(epochs: int = 3, *, of: int = 40) -> tuple[ScriptedRun, RunState]:
    """Return a run of which nobody has answered `epochs` packets, outcomes included for all but the last."""
    run = ScriptedRun("run-due", epochs=of)
    state = fold(RunState("run-due"), run.request())
    for epoch in range(1, epochs + 1):
        state = fold(state, run.next_packet())
        if epoch < epochs:
            state = fold(state, run.apply(None))
    return run, state


def outcome(run: ScriptedRun, result: ly.CommandResult) -> ly.CommandOutcome:
    """Return an outcome of the run's last epoch."""
    made = run.apply(None)
    made.result = result
    return made


def test_only_the_latest_packet_is_decided() -> None:
    """Packets that went by while nobody was there are left alone."""
    _, state = begun(5)
    waiting = packet_to_decide(state)
    assert waiting is not None
    assert waiting.epoch == 5


@pytest.mark.parametrize(
    ("result", "decides"),
    [
        (ly.COMMAND_RESULT_APPLIED, False),
        (ly.COMMAND_RESULT_REJECTED, False),
        (ly.COMMAND_RESULT_NONE, True),
    ],
)
def test_an_outcome_ends_the_wait_unless_it_was_silence(result: ly.CommandResult, *, decides: bool) -> None:
    """Applied or rejected: the edge is past. None: a late answer still tells the worker that somebody is back."""
    run, state = begun(3)
    state = fold(state, outcome(run, result))
    assert (packet_to_decide(state) is not None) is decides


def test_nothing_is_decided_after_the_end() -> None:
    """A run that is over, finished or failed, gets neither decision nor command."""
    run, state = begun(3)
    for end in (run.finished(), run.failed()):
        ended = fold(state, end)
        assert packet_to_decide(ended) is None
        assert command_to_send(ended) is None


def test_a_decision_without_its_command_gets_it() -> None:
    """The process died between the two; the command is the one that the decision proposed."""
    _, state = begun(3)
    packet = packet_to_decide(state)
    assert packet is not None
    decision = decide(state, packet)
    state = fold(state, decision.made)
    assert packet_to_decide(state) is None
    unsent = command_to_send(state)
    assert unsent is not None
    assert ly.AdaptationCommand.FromString(unsent.executed) == decision.command
    assert command_to_send(fold(state, decision.command)) is None


@pytest.mark.parametrize("result", [ly.COMMAND_RESULT_APPLIED, ly.COMMAND_RESULT_REJECTED, ly.COMMAND_RESULT_NONE])
def test_a_command_is_not_sent_once_its_packet_has_an_outcome(result: ly.CommandResult) -> None:
    """It could only be late."""
    run, state = begun(3)
    packet = packet_to_decide(state)
    assert packet is not None
    state = fold(fold(state, decide(state, packet).made), outcome(run, result))
    assert command_to_send(state) is None


def test_a_command_is_not_sent_once_a_later_packet_is_there() -> None:
    """Its outcome may not have been read yet, but the run has gone on."""
    run, state = begun(3)
    packet = packet_to_decide(state)
    assert packet is not None
    state = fold(fold(state, decide(state, packet).made), run.next_packet())
    assert command_to_send(state) is None
    waiting = packet_to_decide(state)
    assert waiting is not None
    assert waiting.epoch == 4


def test_an_empty_run_owes_nothing() -> None:
    """A run known only by its request, or by its end, has nothing to answer."""
    run = ScriptedRun("run-empty")
    state = fold(RunState("run-empty"), run.request())
    assert packet_to_decide(state) is None
    assert command_to_send(state) is None
    failed = fold(state, run.failed())
    assert reports_due(failed) == ()
    assert settled(failed)


def test_reports_are_due_once() -> None:
    """A report that is folded back is not due again, and the run is settled when none is open."""
    run, state = begun(1, of=2)
    packet = packet_to_decide(state)
    assert packet is not None
    decision = decide(state, packet)
    state = fold(fold(state, decision.made), decision.command)
    assert reports_due(state) == (), "the window is open"
    state = fold(fold(state, run.apply(decision.command)), run.next_packet())
    (report,) = reports_due(state)
    assert report.decision_id == decision.made.meta.event_id
    state = fold(state, report)
    assert reports_due(state) == ()
    assert not settled(state)
    assert settled(fold(state, run.finished()))
