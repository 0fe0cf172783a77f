"""Which commands a run may apply: a fold of the run's own packets and outcomes, nothing else.

Signature and source are checked before (the fabric hands on authentic records of allowed sources only).
Here it is decided whether a command is the answer that the run waits for. Nothing is remembered beside the
log: a restart re-opens nothing, and replaying history never fails for age, because both times compared are
the record's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from esper.core.errors import IntegrityError
from esper.core.ports import COMMAND_NOT_YET, COMMAND_REPLAYED, COMMAND_STALE
from esper.leyline import messages as ly

#: Why a command is not applicable, in the order in which it is asked.
REASON_FOREIGN_RUN: Final = "foreign_run"
REASON_MISSING_COMMAND_ID: Final = "missing_command_id"
REASON_MISSING_TIMESTAMP: Final = "missing_timestamp"
REASON_NONCE_REPLAYED: Final = COMMAND_REPLAYED
REASON_NO_OPERATOR: Final = "not_an_operator"
REASON_BAD_EPOCHS: Final = "bad_epochs"
REASON_UNKNOWN_PACKET: Final = "unknown_packet"
REASON_LATE: Final = "late_command"
REASON_WRONG_EPOCH: Final = "wrong_epoch"
REASON_STALE: Final = COMMAND_STALE
REASON_NOT_YET: Final = COMMAND_NOT_YET
REASONS: Final = (
    REASON_FOREIGN_RUN,
    REASON_MISSING_COMMAND_ID,
    REASON_MISSING_TIMESTAMP,
    REASON_NONCE_REPLAYED,
    REASON_NO_OPERATOR,
    REASON_BAD_EPOCHS,
    REASON_UNKNOWN_PACKET,
    REASON_LATE,
    REASON_WRONG_EPOCH,
    REASON_STALE,
    REASON_NOT_YET,
)

#: The source that gives an operator's commands; whoever controls a run by policy answers its packets.
OPERATOR: Final = "cli"


@dataclass(frozen=True)
class NonceLedger:
    """What a run has asked and answered so far.

    `packets`: event id of each state packet -> its epoch. `outcomes`: event id of an answered packet -> event
    id of the command that its outcome names ("" for none). Both grow by one entry an epoch and no faster.
    """

    run_id: str
    packets: Mapping[str, int] = field(default_factory=dict)
    outcomes: Mapping[str, str] = field(default_factory=dict)
    command_ids: frozenset[str] = frozenset()
    #: Event ids of the commands that outcomes name.
    command_events: frozenset[str] = frozenset()
    #: Event id of the state packet with the highest epoch; "" before the first.
    latest_packet: str = ""

    @property
    def epoch(self) -> int:
        """Epoch of the latest packet; 0 before the first."""
        return self.packets.get(self.latest_packet, 0)

    @property
    def answered(self) -> bool:
        """Whether the latest packet has its outcome; nothing can be applied then until the next packet."""
        return not self.packets or self.latest_packet in self.outcomes

    def fold(self, event: ly.SystemStatePacket | ly.CommandOutcome) -> NonceLedger:
        """Return the ledger after one more event of the run; pure.

        Of two packets of one epoch, or two outcomes of one packet, the first binds.

        Raises:
            IntegrityError: the event is another run's.
        """
        run_id = event.training_run_id if isinstance(event, ly.SystemStatePacket) else event.run_id
        if run_id != self.run_id:
            raise IntegrityError(
                f"an event of run {run_id!r} was folded into the ledger of run {self.run_id!r}",
                next_step="fold only records whose key is the run",
            )
        if isinstance(event, ly.SystemStatePacket):
            return self._asked(event.meta.event_id, int(event.current_epoch))
        return self._answered(event)

    def _asked(self, event_id: str, epoch: int) -> NonceLedger:
        if epoch in self.packets.values():
            return self
        latest = event_id if epoch > self.epoch else self.latest_packet
        return replace(self, packets={**self.packets, event_id: epoch}, latest_packet=latest)

    def _answered(self, outcome: ly.CommandOutcome) -> NonceLedger:
        if outcome.state_event_id in self.outcomes:
            return self
        outcomes = {**self.outcomes, outcome.state_event_id: outcome.command_event_id}
        used = self.command_ids | {outcome.command_id} if outcome.command_id else self.command_ids
        events = self.command_events | {outcome.command_event_id} if outcome.command_event_id else self.command_events
        return replace(self, outcomes=outcomes, command_ids=used, command_events=events)

    def used(self, command: ly.AdaptationCommand) -> bool:
        """Whether an outcome of the run already names this command, by its own id or its record's."""
        return command.command_id in self.command_ids or command.meta.event_id in self.command_events


@dataclass(frozen=True)
class CommandVerdict:
    """Whether a command may be applied now; `reason` is "ok" or one of `REASONS`."""

    applicable: bool
    reason: str


@dataclass(frozen=True)
class CommandVerifier:
    """Judges commands against a ledger; pure.

    `window_seconds`: most that the log's append time may lie behind the command's own issue time, so that a
    producer which sat on a command cannot have it applied late.
    """

    window_seconds: float

    def verify(self, command: ly.AdaptationCommand, ledger: NonceLedger, *, append_time_ms: int) -> CommandVerdict:
        """Return whether `command` may be applied to the run's latest packet, in time and for the first time.

        An answer names that packet as its cause; an operator's command names epochs that hold it. `append_time_ms`
        is the record's LogAppendTime. A refused command uses nothing up: the same command id is accepted later if
        it then fits. "not_yet" is an operator's command whose epochs lie ahead.
        """
        reason = self._refusal(command, ledger, append_time_ms)
        return CommandVerdict(applicable=not reason, reason=reason or "ok")

    def _refusal(self, command: ly.AdaptationCommand, ledger: NonceLedger, append_time_ms: int) -> str:
        if command.training_run_id != ledger.run_id:
            return REASON_FOREIGN_RUN
        if not command.command_id:
            return REASON_MISSING_COMMAND_ID
        if not command.meta.HasField("time"):
            return REASON_MISSING_TIMESTAMP
        if ledger.used(command):
            return REASON_NONCE_REPLAYED
        stale = append_time_ms - command.meta.time.ToMilliseconds() > self.window_seconds * 1000
        if command.first_epoch or command.last_epoch:
            return _operator_refusal(command, ledger, stale=stale)
        return _answer_refusal(command, ledger) or (REASON_STALE if stale else "")


def _answer_refusal(command: ly.AdaptationCommand, ledger: NonceLedger) -> str:
    """Return why a command does not answer the run's latest packet; "" if it does."""
    cause = command.meta.causation_id
    if cause not in ledger.packets:
        return REASON_UNKNOWN_PACKET
    if cause != ledger.latest_packet or cause in ledger.outcomes:
        return REASON_LATE
    if command.epoch != ledger.packets[cause]:
        return REASON_WRONG_EPOCH
    return ""


def _operator_refusal(command: ly.AdaptationCommand, ledger: NonceLedger, *, stale: bool) -> str:
    """Return why an operator's command may not be applied at the latest packet's epoch, or not yet."""
    if command.meta.source != OPERATOR:
        return REASON_NO_OPERATOR
    if not 0 < command.first_epoch <= command.last_epoch:
        return REASON_BAD_EPOCHS
    if stale:
        return REASON_STALE
    past = ledger.epoch if ledger.answered else ledger.epoch - 1
    if command.last_epoch <= past:
        return REASON_LATE
    if ledger.answered or ledger.epoch < command.first_epoch:
        return REASON_NOT_YET
    return ""


class RunCommandVerifier:
    """A verifier with the ledger of one run: tell it every acknowledged packet and outcome, and ask.

    Holds nothing that the log does not: a new one that is told the same events answers alike.
    """

    def __init__(self, run_id: str, *, window_seconds: float) -> None:
        self.ledger = NonceLedger(run_id)
        self._verifier = CommandVerifier(window_seconds)

    def fold(self, event: ly.SystemStatePacket | ly.CommandOutcome) -> None:
        """Take note of an acknowledged event of the run."""
        self.ledger = self.ledger.fold(event)

    def refusal(self, command: ly.AdaptationCommand, *, append_time_ms: int) -> str:
        """Return why `command` may not be applied now, one of `REASONS`; "" when it may."""
        verdict = self._verifier.verify(command, self.ledger, append_time_ms=append_time_ms)
        return "" if verdict.applicable else verdict.reason
