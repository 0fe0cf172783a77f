"""What a run's state still owes to the log: a decision, a command, reports.

The rules of a restart are the rules of every moment (docs: the control loop, point 4), so there is one function
for both: a packet that is no longer the run's latest gets no decision; the latest gets one unless its command was
applied or rejected or the run is over; a decision whose command is missing gets it while the packet has no outcome.
"""

from __future__ import annotations

from esper.leyline import messages as ly
from esper.tamiyo._facts import DecisionFacts, PacketFacts
from esper.tamiyo._reports import report_of
from esper.tamiyo._state import RunState

#: Results after which an epoch's edge is past: whatever is ordered now changes nothing there.
_ANSWERED = frozenset({ly.COMMAND_RESULT_APPLIED, ly.COMMAND_RESULT_REJECTED})


def packet_to_decide(state: RunState) -> PacketFacts | None:
    """Return the packet that waits for a decision, or None.

    A packet whose epoch went by without a command (outcome NONE) is still decided while it is the latest: the
    late command tells the worker that somebody answers again, which closes its breaker. Epochs that a fork took
    from another run were decided there.
    """
    latest = state.latest
    if latest is None or state.end is not None or latest.epoch in state.decisions:
        return None
    if state.request is not None and latest.epoch <= state.request.forked_epochs:
        return None
    outcome = state.outcomes.get(latest.epoch)
    return None if outcome is not None and outcome.result in _ANSWERED else latest


def superseded(state: RunState, epoch: int) -> str:
    """Return why the packet of `epoch` no longer shows how its run stands; empty where it does.

    Asked where somebody names the packet himself: what a run is owed follows from its latest one alone.
    """
    packet, latest = state.packets[epoch], state.latest
    assert latest is not None, "a state with a packet has a latest one"
    if latest.epoch > epoch:
        return f"the run has gone on to epoch {latest.epoch}"
    if packet.attempt < state.attempt:
        return f"attempt {state.attempt} has taken the run over from attempt {packet.attempt}"
    return ""


def command_to_send(state: RunState) -> DecisionFacts | None:
    """Return the decision whose command is to be sent, or None."""
    latest = state.latest
    if latest is None or state.end is not None or latest.epoch in state.outcomes:
        return None
    decision = state.decisions.get(latest.epoch)
    return decision if decision is not None and decision.decision_id not in state.commanded else None


def reports_due(state: RunState) -> tuple[ly.FieldReport, ...]:
    """Return the reports of decisions whose window is over and that are not closed yet, in order of epochs."""
    pending = (state.decisions[epoch] for epoch in sorted(state.decisions))
    reports = (report_of(state, decision) for decision in pending if decision.decision_id not in state.reported)
    return tuple(report for report in reports if report is not None)


def settled(state: RunState) -> bool:
    """Return whether the run is over and every decision is closed, so that nothing of it is needed any more."""
    return state.ended and all(decision.decision_id in state.reported for decision in state.decisions.values())
