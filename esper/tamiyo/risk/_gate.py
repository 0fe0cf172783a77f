"""The gate itself: from a policy's proposal to the command that the run gets, with the reasons.

It is part of the environment. The policy's proposal, its heads and their probabilities stay what they are, and what
is learned from is the proposal; which command the run got instead is an outcome. Pure: the same case, the same
verdict.

What takes away or holds back passes: a cull is a better answer to a spike than a pause. Otherwise seeds stand still
where a rule asks for it and a pause is possible; where it is not, whatever would move growth on waits, and the run
goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from esper.leyline import messages as ly
from esper.tamiyo._facts import RULES_ANNOTATION, SIGNALS_ANNOTATION
from esper.tamiyo.risk._rules import (
    CONSERVATIVE,
    Case,
    Trip,
    blueprint,
    compute_budget,
    conservative,
    live,
    loss_spike,
    parameter_budget,
    stale,
)

_PASSING_OPERATIONS: Final = frozenset({ly.SEED_OP_CULL, ly.SEED_OP_CANCEL})
_PASSING_TYPES: Final = frozenset({ly.COMMAND_EMERGENCY, ly.COMMAND_ROLLBACK, ly.COMMAND_STRUCTURAL_PRUNING})


@dataclass(frozen=True)
class Verdict:
    """What the gate made of a proposal; without a command the proposal itself is carried out."""

    trips: tuple[Trip, ...] = ()
    command: ly.AdaptationCommand | None = None
    #: Why in words, as the decision records it; empty where nothing was overridden.
    reason: str = ""
    #: Risk of the blueprint that was to come nearer to the host; None where there is none or nobody registered it.
    blueprint_id: str = ""
    blueprint_risk: float | None = None

    @property
    def conservative(self) -> bool:
        """Whether the run is in conservative mode."""
        return any(trip.rule == CONSERVATIVE for trip in self.trips)


def judge(case: Case) -> Verdict:
    """Return what the run is told in place of the proposal, and why."""
    found = [rule(case) for rule in (stale, conservative, loss_spike, blueprint, parameter_budget, compute_budget)]
    trips = tuple(trip for trip in found if trip is not None)
    facts = case.surroundings.blueprints.get(case.blueprint_id)
    risk = facts.risk if facts is not None else None
    command, reason = _instead(case, trips)
    return Verdict(trips, command, reason, case.blueprint_id, risk)


def _instead(case: Case, trips: Sequence[Trip]) -> tuple[ly.AdaptationCommand | None, str]:
    if not trips or _passes(case):
        return None, ""
    obstacle = _obstacle(case)
    wants_pause = any(trip.pauses for trip in trips) and bool(live(case.packet))
    pauses = wants_pause and not obstacle
    if not pauses and case.proposed.command_type == ly.COMMAND_CONTINUE:
        return None, ""
    reason = "; ".join(f"{trip.rule}: {trip.why}" for trip in trips)
    if wants_pause and obstacle:
        reason += f"; {obstacle}"
    return _command(case, trips, reason, pauses=pauses), reason


def _passes(case: Case) -> bool:
    """Whether the proposal takes away or holds back; an order about a state that is past is none of these."""
    if case.surroundings.superseded:
        return False
    proposed = case.proposed
    match proposed.command_type:
        case ly.COMMAND_SEED:
            return case.operation in _PASSING_OPERATIONS
        case ly.COMMAND_PAUSE:
            return not proposed.pause.resume
        case ly.COMMAND_CIRCUIT_BREAKER:
            return proposed.circuit_breaker.desired_state == ly.CIRCUIT_STATE_OPEN
        case kind:
            return kind in _PASSING_TYPES


def _obstacle(case: Case) -> str:
    """Return why seeds cannot be told to stand still; empty where they can."""
    if not case.can_pause:
        return "a stack cannot pause its members: growth waits instead"
    if case.packet.held:
        return "growth stands still already"
    if case.surroundings.superseded:
        return "an order about a past state pauses nothing"
    if case.limits.pause_epochs <= 0:
        return "the run allows no pause: growth waits instead"
    if case.packet.epochs_planned and case.packet.epoch >= case.packet.epochs_planned:
        return "the run ends: growth waits instead"
    return ""


def _command(case: Case, trips: Sequence[Trip], reason: str, *, pauses: bool) -> ly.AdaptationCommand:
    """Return the gate's command: the proposal's ids, so that a decision has one command whoever words it."""
    proposed = case.proposed
    command = ly.AdaptationCommand(
        version=proposed.version,
        command_id=proposed.command_id,
        command_type=ly.COMMAND_PAUSE if pauses else ly.COMMAND_CONTINUE,
        training_run_id=proposed.training_run_id,
        epoch=proposed.epoch,
        issued_by=proposed.issued_by,
        decision_id=proposed.decision_id,
        annotations={RULES_ANNOTATION: ",".join(trip.rule for trip in trips)},
    )
    signals = [signal for trip in trips for signal in trip.signals]
    if signals:
        command.annotations[SIGNALS_ANNOTATION] = ",".join(signals)
    if pauses:
        command.pause.CopyFrom(ly.CommandPause(epochs=case.limits.pause_epochs, rationale=reason))
    return command
