"""Halts that the topic `emergency` tells of, as the command of the next edge: an outcome says that it was heeded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from esper.leyline import messages as ly
from esper.oona import Event
from esper.tolaria.record._journal import Answer

#: Says why a command may not be applied now, "" if it may; given the command and its append time in milliseconds.
Refusal = Callable[[ly.AdaptationCommand, int], str]


class Hearing(Protocol):
    """What hands over the signals that wait; an inbox of `esper.oona`'s emergency watch is one."""

    def hear(self) -> None:
        """Call the handler with each signal that waits."""


class EmergencyDesk:
    """Keeps the signals of level HALT that concern one run until an edge can heed them, each once."""

    def __init__(self, run_id: str, listen: Callable[[Callable[[Event], None]], Hearing]) -> None:
        self._run_id = run_id
        self._waiting: deque[Event] = deque()
        self._hearing = listen(self._note)

    def _note(self, event: Event) -> None:
        signal = event.message
        assert isinstance(signal, ly.EmergencySignal), "nothing else is in the topic"
        if signal.level == ly.EMERGENCY_LEVEL_HALT and signal.run_id in ("", self._run_id):
            self._waiting.append(event)

    def order(self, packet: ly.SystemStatePacket, refusal: Refusal) -> Answer | None:
        """Return the halt as the answer to `packet`; None where there is none that was not heeded before.

        Raises:
            BrokerUnavailable: the topic cannot be read.
        """
        self._hearing.hear()
        while self._waiting:
            event = self._waiting.popleft()
            command = _command_of(event, packet)
            if not refusal(command, event.record.append_time_ms):
                return Answer(command=command)
        return None


def _command_of(event: Event, packet: ly.SystemStatePacket) -> ly.AdaptationCommand:
    signal = event.message
    assert isinstance(signal, ly.EmergencySignal), "only signals are kept"
    command = ly.AdaptationCommand(
        version=1,
        command_id=f"emergency-{event.meta.event_id}",
        command_type=ly.COMMAND_EMERGENCY,
        training_run_id=packet.training_run_id,
        epoch=packet.current_epoch,
        issued_by=signal.origin,
        annotations={"reason": signal.reason},
    )
    command.meta.CopyFrom(event.meta)
    command.meta.causation_id = packet.meta.event_id
    return command
