"""The journal of a stack: as that of a run, for all members at once, in the order of the calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.tolaria.record._journal import Answer, Policy
from esper.tolaria.record._recording import Difference, NotRepeated, Recording, RecordingEnded, first_difference


class StackJournal(Protocol):
    """Keeps the record of every member's run. What returns is acknowledged; events of one run keep their order.

    Every method may raise RunInterrupted, BrokerUnavailable or IntegrityError.
    """

    def append_seed_events(self, epoch: int, events: Mapping[int, Sequence[EventMessage]]) -> None:
        """Append what happened to seeds, by member."""

    def append_states(self, packets: Mapping[int, ly.SystemStatePacket]) -> None:
        """Append the members' states at the end of an epoch."""

    def await_commands(self, packets: Mapping[int, ly.SystemStatePacket]) -> dict[int, Answer]:
        """Return each member's answer to its packet."""

    def append_outcomes(self, outcomes: Mapping[int, ly.CommandOutcome]) -> None:
        """Append what became of the commands; the epoch is over when this returns."""

    def append_diverged(self, member: int, *, epoch: int, detail: str) -> None:
        """Append that a member's run ends here: its held-out loss is no finite number any more."""


@dataclass
class MemoryStackJournal:
    """A journal that lives and dies with its process; `policy` answers each packet at once."""

    policy: Policy | None = None
    packets: list[ly.SystemStatePacket] = field(default_factory=list)
    outcomes: list[ly.CommandOutcome] = field(default_factory=list)
    seed_events: list[EventMessage] = field(default_factory=list)
    diverged: dict[int, int] = field(default_factory=dict)

    def append_seed_events(self, epoch: int, events: Mapping[int, Sequence[EventMessage]]) -> None:
        for each in events.values():
            self.seed_events.extend(each)

    def append_states(self, packets: Mapping[int, ly.SystemStatePacket]) -> None:
        self.packets.extend(packets.values())

    def await_commands(self, packets: Mapping[int, ly.SystemStatePacket]) -> dict[int, Answer]:
        answers = {}
        for member, packet in packets.items():
            command = self.policy(packet) if self.policy is not None else None
            answers[member] = Answer(command=command, reason="" if command is not None else "timeout")
        return answers

    def append_outcomes(self, outcomes: Mapping[int, ly.CommandOutcome]) -> None:
        self.outcomes.extend(outcomes.values())

    def append_diverged(self, member: int, *, epoch: int, detail: str) -> None:
        self.diverged[member] = epoch

    def recordings(self, requests: Sequence[ly.TrainingRunRequested]) -> list[Recording]:
        """Return what was recorded, by member."""
        return [
            Recording.of(
                [packet for packet in self.packets if packet.training_run_id == request.run_id],
                [outcome for outcome in self.outcomes if outcome.run_id == request.run_id],
            )
            for request in requests
        ]


class RecordedStackJournal:
    """Replays a recorded stack in silence, and raises where a member's repeat leaves its record.

    An epoch that one member lacks ends the repeat: a stack goes on only as a whole. Only members that the record
    itself ended before, which diverged, may lack one.
    """

    def __init__(self, recordings: Sequence[Recording]) -> None:
        self._recordings = recordings

    def append_seed_events(self, epoch: int, events: Mapping[int, Sequence[EventMessage]]) -> None:
        """Let recorded events pass."""

    def append_states(self, packets: Mapping[int, ly.SystemStatePacket]) -> None:
        """Hold every repeated packet against the recorded one.

        Raises:
            NotRepeated: they differ; of several members the first is named.
            RecordingEnded: no member has this epoch.
        """
        recorded = {
            member: self._recordings[member].packets.get(each.current_epoch) for member, each in packets.items()
        }
        for member, packet in packets.items():
            expected = recorded[member]
            if expected is not None:
                difference = first_difference(expected, packet)
                if difference is not None:
                    raise NotRepeated(packet.training_run_id, difference)
        if any(expected is None for expected in recorded.values()):
            raise RecordingEnded

    def await_commands(self, packets: Mapping[int, ly.SystemStatePacket]) -> dict[int, Answer]:
        """Return the recorded answers."""
        answers = {}
        for member, packet in packets.items():
            outcome = self._recordings[member].outcomes.get(packet.current_epoch)
            if outcome is None:
                raise RecordingEnded
            answers[member] = Answer.of(outcome)
        return answers

    def append_outcomes(self, outcomes: Mapping[int, ly.CommandOutcome]) -> None:
        """Let recorded outcomes pass."""

    def append_diverged(self, member: int, *, epoch: int, detail: str) -> None:
        """Let a recorded end pass.

        Raises:
            NotRepeated: the record goes on.
        """
        packet = self._recordings[member].packets.get(epoch)
        if packet is not None:
            loss = repr(packet.validation_loss)
            raise NotRepeated(packet.training_run_id, Difference(epoch, "validation_loss", loss, "not finite"))
