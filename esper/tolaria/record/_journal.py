"""The training journal: the one port between the epoch loop and whatever keeps its record.

The same loop writes a live run to Kafka, repeats a recorded one in silence, or runs in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import EsperError
from esper.leyline import EventMessage
from esper.leyline import messages as ly


class RunInterrupted(EsperError):
    """The worker was told to stop; the run stays claimed and is left to the worker's next life."""


class RunFenced(EsperError):
    """Another worker claimed the run with a higher attempt; this one must append nothing more."""


@dataclass(frozen=True)
class Answer:
    """What came of waiting for an epoch's command.

    `command` is None when none came, and `reason` says why ("timeout", "breaker_open"). `late` are commands of
    the run that may not be applied, `unlisted` counts those beyond them. `recorded` is set in re-execution: this
    outcome binds.
    """

    command: ly.AdaptationCommand | None = None
    reason: str = ""
    offset: int = 0
    late: tuple[ly.LateCommand, ...] = ()
    unlisted: int = 0
    recorded: ly.CommandOutcome | None = None

    @classmethod
    def of(cls, outcome: ly.CommandOutcome) -> Answer:
        """Return the answer that an outcome records, and which then binds."""
        return cls(
            command=outcome.command if outcome.HasField("command") else None,
            reason=outcome.reason,
            offset=outcome.command_offset,
            late=tuple(outcome.late_commands),
            unlisted=outcome.late_commands_unlisted,
            recorded=outcome,
        )


class TrainingJournal(Protocol):
    """Keeps the record of one run, in the order of the calls. What returns is acknowledged.

    Every method may raise RunFenced, RunInterrupted, BrokerUnavailable or IntegrityError.
    """

    def append_seed_events(self, epoch: int, events: Sequence[EventMessage]) -> None:
        """Append what happened to seeds."""

    def append_state(self, packet: ly.SystemStatePacket) -> None:
        """Append the state at the end of an epoch."""

    def await_command(self, packet: ly.SystemStatePacket) -> Answer:
        """Return the command that answers `packet`, or why there is none."""

    def append_outcome(self, outcome: ly.CommandOutcome) -> None:
        """Append what became of the epoch's command; the epoch is over when this returns."""

    def append_return(self, outcome: ly.CommandOutcome) -> None:
        """Append the event of the return to a checkpoint that an appended outcome holds."""

    def submit_telemetry(self, epoch: int, packet: ly.TelemetryPacket) -> None:
        """Hand over telemetry without waiting for it."""


Policy = Callable[[ly.SystemStatePacket], ly.AdaptationCommand | None]


@dataclass
class MemoryJournal:
    """A journal that lives and dies with its process; `policy` answers each packet at once.

    For libraries and experiments without a broker. A policy's None is an epoch without a command.
    """

    policy: Policy | None = None
    packets: list[ly.SystemStatePacket] = field(default_factory=list)
    outcomes: list[ly.CommandOutcome] = field(default_factory=list)
    seed_events: list[EventMessage] = field(default_factory=list)
    returns: list[ly.RunRolledBack] = field(default_factory=list)
    telemetry: list[ly.TelemetryPacket] = field(default_factory=list)

    def append_seed_events(self, epoch: int, events: Sequence[EventMessage]) -> None:
        self.seed_events.extend(events)

    def append_state(self, packet: ly.SystemStatePacket) -> None:
        self.packets.append(packet)

    def await_command(self, packet: ly.SystemStatePacket) -> Answer:
        command = self.policy(packet) if self.policy is not None else None
        return Answer(command=command, reason="" if command is not None else "timeout")

    def append_outcome(self, outcome: ly.CommandOutcome) -> None:
        self.outcomes.append(outcome)

    def append_return(self, outcome: ly.CommandOutcome) -> None:
        self.returns.append(outcome.rolled_back)

    def submit_telemetry(self, epoch: int, packet: ly.TelemetryPacket) -> None:
        self.telemetry.append(packet)


def latency_ms(since: float, clock: Clock = SYSTEM_CLOCK) -> float:
    """Return the milliseconds that have passed on `clock` since its monotonic time `since`."""
    return (clock.monotonic() - since) * 1000.0
