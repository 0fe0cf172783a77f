"""The journal of a stack that is trained live: one flush for each kind of event of an edge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from google.protobuf.message import Message

from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.oona import Publisher
from esper.tolaria.record._journal import Answer
from esper.tolaria.worker._failures import publish_failure

DIVERGED = "diverged"


class StackDecisions(Protocol):
    """Who decides for the members; weatherlight passes Tamiyo's."""

    def decide(self, packets: Iterable[ly.SystemStatePacket]) -> Mapping[str, tuple[ly.AdaptationCommand, int]]:
        """Append the decisions and commands about acknowledged packets; return command and offset by run."""

    def settle(self, run_id: str, event: Message) -> None:
        """Take note of an acknowledged outcome or end."""


class KafkaStackJournal:
    """Appends the events of all members. What returns is acknowledged, and each run's events keep their order."""

    def __init__(
        self, run_ids: Sequence[str], *, publisher: Publisher, seed_publisher: Publisher, decisions: StackDecisions
    ) -> None:
        self._run_ids = list(run_ids)
        self._publisher = publisher
        self._seed_publisher = seed_publisher
        self._decisions = decisions

    def append_seed_events(self, epoch: int, events: Mapping[int, Sequence[EventMessage]]) -> None:
        """Append what happened to seeds; nothing is waited for where nothing happened."""
        for member, each in events.items():
            for event in each:
                cause = event.meta.causation_id
                self._seed_publisher.submit(event, key=self._run_ids[member], causation_id=cause)
        self._seed_publisher.flush()

    def append_states(self, packets: Mapping[int, ly.SystemStatePacket]) -> None:
        """Append the members' packets."""
        for packet in packets.values():
            self._publisher.submit(packet, key=packet.training_run_id, causation_id=packet.meta.causation_id)
        self._publisher.flush()

    def await_commands(self, packets: Mapping[int, ly.SystemStatePacket]) -> dict[int, Answer]:
        """Have every packet decided."""
        commands = self._decisions.decide(packets.values())
        answers = {}
        for member, packet in packets.items():
            command, offset = commands[packet.training_run_id]
            answers[member] = Answer(command=command, offset=offset)
        return answers

    def append_outcomes(self, outcomes: Mapping[int, ly.CommandOutcome]) -> None:
        """Append the outcomes: the epoch is over when all are acknowledged."""
        for outcome in outcomes.values():
            self._publisher.submit(outcome, key=outcome.run_id, causation_id=outcome.meta.causation_id)
        self._publisher.flush()
        for outcome in outcomes.values():
            self._decisions.settle(outcome.run_id, outcome)

    def append_diverged(self, member: int, *, epoch: int, detail: str) -> None:
        """Append that a member's run failed."""
        run_id = self._run_ids[member]
        failed = publish_failure(
            self._publisher, run_id=run_id, attempt=1, reason=DIVERGED, detail=detail, epochs=epoch - 1
        )
        self._decisions.settle(run_id, failed)
