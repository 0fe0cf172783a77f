"""The control loop at one epoch's edge: faults, state, command, decision, outcome, in this order.

Append first, then act: the model changes only by folding events that the journal has acknowledged.
"""

from __future__ import annotations

from collections.abc import Iterable

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.ids import EventId, derive_id
from esper.core.ports import EdgeDecision, GraftController
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.tolaria.loop._return_rules import Return
from esper.tolaria.loop._run_orders import RunOrders
from esper.tolaria.record._journal import Answer, TrainingJournal, latency_ms
from esper.tolaria.record._recording import Difference, NotRepeated


def state_event_id(run_id: str, epoch: int) -> EventId:
    """Return the id of the state packet of `epoch`; every attempt names it alike."""
    return derive_id(run_id, "state", epoch)


def outcome_event_id(run_id: str, epoch: int) -> EventId:
    """Return the id of the outcome of `epoch`; every attempt names it alike."""
    return derive_id(run_id, "outcome", epoch)


class EpochEdge:
    """Runs the edge of every epoch of one attempt at one run.

    The trainer, re-execution and users' own loops share it, so that all of them change a model in one way.
    """

    def __init__(
        self,
        *,
        run_id: str,
        attempt: int,
        controller: GraftController,
        journal: TrainingJournal,
        clock: Clock = SYSTEM_CLOCK,
        orders: RunOrders | None = None,
    ) -> None:
        self._run_id = run_id
        self._attempt = attempt
        self._controller = controller
        self._journal = journal
        self._clock = clock
        #: Judges what concerns the run as a whole; None leaves every command to the controller.
        self._orders = orders
        #: Seed events of the run so far: what their ids are counted by.
        self.seed_events = 0

    def settle_faults(self, epoch: int) -> None:
        """Measure the seeds on the probe; append and fold the moves that faults force."""
        events = self._controller.end_epoch(epoch)
        self._append_and_fold(epoch, events, causation_id="")

    def close(self, packet: ly.SystemStatePacket) -> ly.CommandOutcome:
        """Append `packet`, wait for its command, apply it, and return the appended outcome.

        Raises:
            NotRepeated: in re-execution, the verdict differs from the recorded one.
        """
        self._journal.append_state(packet)
        acknowledged = self._clock.monotonic()
        answer = self._journal.await_command(packet)
        epoch = packet.current_epoch
        decision, back = self._decided(packet, answer)
        outcome = outcome_of(packet, answer, decision, attempt=self._attempt)
        if back is not None:
            outcome.rolled_back.CopyFrom(back.event)
        outcome.latency_ms = latency_ms(acknowledged, self._clock)
        if answer.recorded is not None:
            check_verdict(outcome, answer.recorded)
        caused_by = outcome.meta.causation_id
        events = self._named(epoch, decision.events, causation_id=caused_by)
        self._journal.append_seed_events(epoch, events)
        self._journal.append_outcome(outcome)
        self._act(outcome, events, back)
        return outcome

    def _decided(self, packet: ly.SystemStatePacket, answer: Answer) -> tuple[EdgeDecision, Return | None]:
        """Ask who the command concerns, the run as a whole or its seeds; a return to a checkpoint is all of an edge."""
        ruling = self._orders.rule(packet, answer) if self._orders is not None else None
        if ruling is not None and ruling.back is not None:
            return ruling.decision, ruling.back
        ruled = None if ruling is None else ruling.decision
        epoch = packet.current_epoch
        decision = self._controller.decide(answer.command, epoch=epoch, recorded=answer.recorded, ruled=ruled)
        return decision, None

    def _act(self, outcome: ly.CommandOutcome, events: Iterable[EventMessage], back: Return | None) -> None:
        """Let the model change as the acknowledged outcome says."""
        if back is None:
            self._fold(events)
        if self._orders is not None:
            self._orders.settle(outcome, back)
        self._controller.settle(outcome)
        if back is not None:
            self._journal.append_return(outcome)

    def _append_and_fold(self, epoch: int, events: Iterable[EventMessage], *, causation_id: str) -> None:
        named = self._named(epoch, events, causation_id=causation_id)
        self._journal.append_seed_events(epoch, named)
        self._fold(named)

    def _fold(self, events: Iterable[EventMessage]) -> None:
        for event in events:
            self._controller.fold(event)

    def _named(self, epoch: int, events: Iterable[EventMessage], *, causation_id: str) -> list[EventMessage]:
        """Give every seed event that has none its id: counted over the whole run."""
        named = []
        for event in events:
            self.seed_events += 1
            if not event.meta.event_id:
                event.meta.event_id = derive_id(self._run_id, "seed", epoch, self.seed_events)
            event.meta.causation_id = event.meta.causation_id or causation_id
            named.append(event)
        return named


def outcome_of(
    packet: ly.SystemStatePacket, answer: Answer, decision: EdgeDecision, *, attempt: int
) -> ly.CommandOutcome:
    """Return what is to be appended about the command of one epoch."""
    run_id, epoch = packet.training_run_id, packet.current_epoch
    outcome = ly.CommandOutcome(
        run_id=run_id,
        attempt=attempt,
        epoch=epoch,
        state_event_id=packet.meta.event_id,
        result=decision.result,
        reason=decision.reason or answer.reason,
        seed_id=decision.seed_id,
        kernel_digest=decision.kernel_digest,
        late_commands=answer.late,
        late_commands_unlisted=answer.unlisted,
        gate_verdicts=decision.gate_verdicts,
        choices=decision.choices,
    )
    outcome.meta.event_id = outcome_event_id(run_id, epoch)
    outcome.meta.causation_id = packet.meta.event_id
    command = answer.command
    if command is not None:
        outcome.meta.causation_id = command.meta.event_id
        outcome.command_id = command.command_id
        outcome.command_event_id = command.meta.event_id
        outcome.command_offset = answer.offset
        outcome.command_type = command.command_type
        outcome.seed_operation = command.seed_operation.operation
        outcome.decision_id = command.decision_id
        outcome.command.CopyFrom(command)
    return outcome


def check_verdict(outcome: ly.CommandOutcome, recorded: ly.CommandOutcome) -> None:
    """Raise NotRepeated where a repeated outcome is another than the recorded one."""
    for name in ("result", "seed_id", "kernel_digest"):
        found, expected = getattr(outcome, name), getattr(recorded, name)
        if found != expected:
            raise NotRepeated(outcome.run_id, Difference(outcome.epoch, f"outcome.{name}", repr(expected), repr(found)))
