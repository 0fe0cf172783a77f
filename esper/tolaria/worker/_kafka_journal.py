"""The journal of a live run: what it says is in the log before the model changes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import cast

from google.protobuf.message import Message

from esper.core.errors import UsageError
from esper.core.ids import derive_id
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.oona import Publisher
from esper.tolaria.loop._packet import priority_of
from esper.tolaria.record._journal import Answer
from esper.tolaria.worker._emergency import EmergencyDesk
from esper.tolaria.worker._inbox import CommandInbox

_log = logging.getLogger("esper.tolaria.journal")


class KafkaJournal:
    """Appends one attempt's events to Kafka and reads its commands.

    `publisher` writes as tolaria, `seed_publisher` as kasmina. `recorded_seed_events` are events of this
    run that a dead attempt appended: none of their ids is given to an event that says something else.
    """

    def __init__(
        self,
        *,
        run_id: str,
        attempt: int,
        publisher: Publisher,
        seed_publisher: Publisher,
        inbox: CommandInbox,
        recorded_seed_events: Mapping[str, EventMessage] | None = None,
        emergencies: EmergencyDesk | None = None,
    ) -> None:
        self._run_id = run_id
        self._attempt = attempt
        self._publisher = publisher
        self._seed_publisher = seed_publisher
        self._inbox = inbox
        self._recorded = recorded_seed_events or {}
        self._emergencies = emergencies

    def append_seed_events(self, epoch: int, events: Sequence[EventMessage]) -> None:
        """Append `events` in order and wait until all are acknowledged."""
        pending = [
            self._seed_publisher.submit(
                self._appendable(epoch, event), key=self._run_id, causation_id=event.meta.causation_id
            )
            for event in events
        ]
        for one in pending:
            one.result()

    def append_state(self, packet: ly.SystemStatePacket) -> None:
        """Append the packet, unless the run belongs to another attempt by now."""
        self._inbox.check()
        self._publisher.publish(packet, key=self._run_id, causation_id=packet.meta.causation_id)
        self._inbox.fold(packet)

    def await_command(self, packet: ly.SystemStatePacket) -> Answer:
        """Return the command that answers `packet`, or why there is none; an emergency goes before every other."""
        if self._emergencies is not None:
            halt = self._emergencies.order(packet, self._inbox.refusal)
            if halt is not None:
                return halt
        return self._inbox.wait()

    def append_outcome(self, outcome: ly.CommandOutcome) -> None:
        """Append the outcome: the epoch is over when it is acknowledged."""
        emergency = outcome.command_type == ly.COMMAND_EMERGENCY and outcome.result == ly.COMMAND_RESULT_APPLIED
        self._publisher.publish(
            outcome,
            key=self._run_id,
            causation_id=outcome.meta.causation_id,
            # With a signal on the topic `emergency` before it.
            priority=ly.MESSAGE_PRIORITY_CRITICAL if emergency else ly.MESSAGE_PRIORITY_NORMAL,
        )
        self._inbox.fold(outcome)

    def append_return(self, outcome: ly.CommandOutcome) -> None:
        """Append RunRolledBack: the outcome says it already, this says it to whoever waits for such an event."""
        event = ly.RunRolledBack()
        event.CopyFrom(outcome.rolled_back)
        event.attempt = self._attempt  # Who says it; a dead attempt may have left it unsaid.
        self._publisher.publish(event, key=self._run_id, causation_id=outcome.meta.event_id)

    def submit_telemetry(self, epoch: int, packet: ly.TelemetryPacket, *, rare: bool = False) -> None:
        """Hand telemetry to the publisher; nobody waits for it, and one that is refused is only logged.

        What is `rare`, one for an attempt, is as little sampled away under pressure as warnings are.
        """
        priority = ly.MESSAGE_PRIORITY_HIGH if rare else priority_of(packet)
        try:
            self._publisher.submit(packet, key=self._publisher.source, correlation_id=self._run_id, priority=priority)
        except UsageError as error:
            _log.warning("telemetry of epoch %d of run %s is lost: %s", epoch, self._run_id, error)

    def _appendable(self, epoch: int, event: EventMessage) -> EventMessage:
        """Return what is to be appended for `event`: it, whether or not a dead attempt appended it too.

        The outcome says which attempt's events count, so they must all be of that attempt. Where the dead one
        appended another event under the same id, which a kernel that was there then and is not now can bring about,
        a copy under an id of this attempt is appended.
        """
        recorded = self._recorded.get(event.meta.event_id)
        if recorded is None or _facts(recorded) == _facts(event):
            return event
        _log.warning("run %s: epoch %d was decided otherwise in an earlier attempt", self._run_id, epoch)
        renamed = _copy(event)
        renamed.meta.event_id = derive_id(event.meta.event_id, "attempt", self._attempt)
        return renamed


def _facts(event: EventMessage) -> bytes:
    """Return what an event says apart from who said it when; used only within one process."""
    copy = cast("Message", _copy(event))
    for name in ("meta", "attempt"):
        copy.ClearField(name)
    return copy.SerializeToString(deterministic=True)


def _copy(event: EventMessage) -> EventMessage:
    original = cast("Message", event)
    copy = type(original)()
    copy.CopyFrom(original)
    return cast("EventMessage", copy)
