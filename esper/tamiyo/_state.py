"""The state of one run as Tamiyo sees it, folded from the log.

Each topic feeds its own fields and no other, and the first record of a natural key wins, so the state depends
only on the order within each topic's partition: however the records of several topics interleave, and however
often one is delivered again, the same state comes out. What joins topics (is a decision due? a report?) is
computed from the finished state in `_due.py`, never stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from google.protobuf.message import Message

from esper.leyline import messages as ly
from esper.tamiyo._facts import (
    DecisionFacts,
    EndFacts,
    OutcomeFacts,
    PacketFacts,
    RequestFacts,
    decision_facts,
    outcome_facts,
    packet_facts,
    request_facts,
)

_Fact = TypeVar("_Fact")


@dataclass(frozen=True)
class RunState:
    """Everything that decisions about one run follow from; epochs count from 1."""

    run_id: str
    request: RequestFacts | None = None  # run-requests
    packets: Mapping[int, PacketFacts] = field(default_factory=dict)  # system-state, by epoch, in order of the log
    decisions: Mapping[int, DecisionFacts] = field(default_factory=dict)  # decisions, by epoch
    commanded: frozenset[str] = frozenset()  # adaptation-commands: decision ids that have their command
    reported: frozenset[str] = frozenset()  # field-reports: decision ids that are closed
    outcomes: Mapping[int, OutcomeFacts] = field(default_factory=dict)  # runs, by epoch
    attempt: int = 0  # runs: highest claimed attempt
    end: EndFacts | None = None  # runs

    @property
    def latest(self) -> PacketFacts | None:
        """The packet of the highest epoch."""
        return self.packets[max(self.packets)] if self.packets else None

    @property
    def ended(self) -> bool:
        """Whether the run is over and all its packets are here.

        `runs` may be read ahead of `system-state`; an end that names more epochs than were seen waits for them.
        """
        return self.end is not None and max(self.packets, default=0) >= self.end.epochs

    def next_packet(self, epoch: int) -> PacketFacts | None:
        """Return the first packet after `epoch`, or None."""
        later = [seen for seen in self.packets if seen > epoch]
        return self.packets[min(later)] if later else None

    def history(self, epoch: int) -> tuple[PacketFacts, ...]:
        """Return the packets that led to `epoch`, its own included, oldest first.

        Epochs that the run left behind when it returned to an earlier one are not among them: the network that is
        trained on has not seen them, and their losses, a spike perhaps, say nothing of its progress.
        """
        line: list[PacketFacts] = []
        for packet in (self.packets[seen] for seen in sorted(self.packets) if seen <= epoch):
            if packet.follows_epoch:
                line = [earlier for earlier in line if earlier.epoch <= packet.follows_epoch]
            line.append(packet)
        return tuple(line)


def run_of(message: Message) -> str:
    """Return the run that a run-scoped event belongs to: the subject of its meta, which is the record's key."""
    meta: ly.EventMeta = message.meta  # type: ignore[attr-defined]  # every event message has a meta
    return meta.subject


def fold(state: RunState, event: Message) -> RunState:
    """Return the state after `event`; an event that says nothing new, or nothing to Tamiyo, changes nothing."""
    match event:
        case ly.TrainingRunRequested():
            return state if state.request is not None else replace(state, request=request_facts(event))
        case ly.SystemStatePacket():
            return replace(state, packets=_first(state.packets, event.current_epoch, packet_facts(event)))
        case ly.DecisionMade():
            return replace(state, decisions=_first(state.decisions, event.epoch, decision_facts(event)))
        case ly.AdaptationCommand() if event.decision_id:  # without a decision it comes from a person
            return replace(state, commanded=state.commanded | {event.decision_id})
        case ly.FieldReport():
            return replace(state, reported=state.reported | {event.decision_id})
        case ly.TrainingRunClaimed():
            return replace(state, attempt=max(state.attempt, event.attempt))
        case ly.CommandOutcome():
            return replace(state, outcomes=_first(state.outcomes, event.epoch, outcome_facts(event)))
        case ly.TrainingRunFinished():
            return _ended(state, EndFacts(finished=True, attempt=event.attempt, epochs=event.epochs))
        case ly.TrainingRunFailed():
            return _ended(state, EndFacts(finished=False, attempt=event.attempt, epochs=event.epochs))
        case _:
            return state


def _first(facts: Mapping[int, _Fact], key: int, fact: _Fact) -> Mapping[int, _Fact]:
    return facts if key in facts else {**facts, key: fact}


def _ended(state: RunState, end: EndFacts) -> RunState:
    """Keep the first end of the attempt in force; an attempt that a later claim fenced ends nothing."""
    fenced = end.attempt < state.attempt
    return state if fenced or state.end is not None else replace(state, end=end)
