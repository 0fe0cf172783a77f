"""Waiting for an epoch's command: who may answer, for how long, and when not to wait any more."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from esper.core.clock import SYSTEM_CLOCK, Clock, Deadline
from esper.core.ports import COMMAND_NOT_YET, COMMAND_REPLAYED, COMMAND_STALE
from esper.leyline import messages as ly
from esper.oona import Event
from esper.tolaria.record._journal import Answer, RunFenced, RunInterrupted

_log = logging.getLogger("esper.tolaria.inbox")

REASON_TIMEOUT: Final = "timeout"
REASON_BREAKER_OPEN: Final = "breaker_open"
#: Two epochs in a row without a command open the breaker: a controller that is away must not cost every
#: further epoch a whole decision wait.
MISSES_MAX: Final = 2
#: How long a read may block, so that a stop is noticed soon; an arriving command ends the read at once.
_READ_SECONDS_MAX: Final = 0.2
#: Refused commands that one outcome lists; a flood of them must not make a run's outcomes too large to append.
_LISTED_MAX: Final = 100
#: What is set aside for everybody to see, beyond the run's own outcome.
_SET_ASIDE: Final = {
    COMMAND_REPLAYED: ly.DEAD_LETTER_REASON_REPLAYED,
    COMMAND_STALE: ly.DEAD_LETTER_REASON_STALE,
}


class CommandSource(Protocol):
    """Where a run's commands and claims come from, in log order; `esper.oona.Reader` is one."""

    def read(self, timeout: float) -> Sequence[Event]:
        """Return the next authentic events; wait up to `timeout` seconds for the first."""

    def set_aside(self, event: Event, *, reason: ly.DeadLetterReason, detail: str) -> None:
        """Append a dead letter for an authentic event that is not to be acted on."""


class CommandJudge(Protocol):
    """Says whether a command may be applied; a fold of the run's own packets and outcomes."""

    def fold(self, event: ly.SystemStatePacket | ly.CommandOutcome) -> None:
        """Take note of an acknowledged event of the run."""

    def refusal(self, command: ly.AdaptationCommand, *, append_time_ms: int) -> str:
        """Return why `command` may not be applied now; "" if it may. `append_time_ms` is its LogAppendTime.

        `COMMAND_NOT_YET` is an operator's command that names epochs ahead.
        """


#: Makes the judge of one run from its id; weatherlight passes one over Kasmina's CommandVerifier.
JudgeFactory = Callable[[str], CommandJudge]


@dataclass(frozen=True)
class DecisionBreaker:
    """Counts epochs in a row that no command answered; a fold of the run's outcomes."""

    misses: int = 0

    @property
    def open(self) -> bool:
        """Whether to stop waiting for commands."""
        return self.misses >= MISSES_MAX

    def heard(self) -> DecisionBreaker:
        """Return the breaker after an authentic command of the run, applicable or late."""
        return replace(self, misses=0)

    def missed(self) -> DecisionBreaker:
        """Return the breaker after an epoch was waited for in vain."""
        return replace(self, misses=self.misses + 1)

    def fold(self, outcome: ly.CommandOutcome) -> DecisionBreaker:
        """Return the breaker after an outcome of the run, as a successor finds it in the log."""
        heard = bool(outcome.late_commands) or outcome.result != ly.COMMAND_RESULT_NONE
        breaker = self.heard() if heard else self
        waited_in_vain = outcome.result == ly.COMMAND_RESULT_NONE and outcome.reason == REASON_TIMEOUT
        return breaker.missed() if waited_in_vain else breaker


class CommandInbox:
    """Hands out the one command for a packet, in log order, and lists those that may not be applied.

    That is the packet's answer, or an operator's command that names the packet's epoch and was there before the
    answer. An operator's command for epochs ahead waits here; it waits again in whoever reads the log anew. The
    caller reports every acknowledged packet and outcome of its run to `fold`.
    """

    def __init__(
        self,
        *,
        run_id: str,
        attempt: int,
        source: CommandSource,
        judge: CommandJudge,
        wait_seconds: float,
        stop: threading.Event,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._run_id = run_id
        self._attempt = attempt
        self._source = source
        self._judge = judge
        self._wait_seconds = wait_seconds
        self._stop = stop
        self._clock = clock
        self._commands: deque[Event] = deque()
        self._waiting: list[Event] = []
        #: Whether what waits is to be judged again: a packet came since it was.
        self._due = True
        #: Event id of every command that was dealt with or waits -> its offset.
        self._known: dict[str, int] = {}
        self._late: list[ly.LateCommand] = []
        self._unlisted = 0
        self.breaker = DecisionBreaker()

    def recover(self, packets: Iterable[ly.SystemStatePacket], outcomes: Iterable[ly.CommandOutcome]) -> None:
        """Take note of what an earlier attempt recorded; commands that its outcomes name are not listed again."""
        for packet in packets:
            self._judge.fold(packet)
        for outcome in outcomes:
            self._judge.fold(outcome)
            self.breaker = self.breaker.fold(outcome)
            self._known[outcome.command_event_id] = outcome.command_offset
            self._known.update((late.event_id, late.offset) for late in outcome.late_commands)

    def fold(self, event: ly.SystemStatePacket | ly.CommandOutcome) -> None:
        """Take note of an acknowledged event of this attempt."""
        self._judge.fold(event)
        self._due = True

    def refusal(self, command: ly.AdaptationCommand, append_time_ms: int) -> str:
        """Return why a command that came another way may not be applied now; "" if it may."""
        return self._judge.refusal(command, append_time_ms=append_time_ms)

    def check(self) -> None:
        """Take in what has arrived.

        Raises:
            RunFenced: the run belongs to another attempt by now, or was given up.
        """
        self._take_in(self._source.read(0.0))

    def wait(self) -> Answer:
        """Return the command for the latest packet, or why there is none.

        Waits `wait_seconds`, or not at all while the breaker is open.

        Raises:
            RunInterrupted: the stop event was set.
            RunFenced: the run belongs to another attempt by now, or was given up.
        """
        deadline = Deadline(self._wait_seconds, clock=self._clock)
        timeout = 0.0
        while True:  # ends with a command, at the deadline, by the breaker or by the stop event
            if self._stop.is_set():
                raise RunInterrupted(f"run {self._run_id} was interrupted while it waited for a command")
            self._take_in(self._source.read(timeout))
            found = self._next_applicable()
            if found is not None:
                return self._answer(found)
            if self.breaker.open:
                return self._no_answer(REASON_BREAKER_OPEN)
            if deadline.expired:
                self.breaker = self.breaker.missed()
                return self._no_answer(REASON_TIMEOUT)
            timeout = min(deadline.remaining_seconds, _READ_SECONDS_MAX)

    def _take_in(self, events: Iterable[Event]) -> None:
        for event in events:
            message = event.message
            if event.meta.subject != self._run_id:
                continue  # Another run whose key shares the partition.
            if isinstance(message, ly.TrainingRunClaimed) and message.attempt == self._attempt + 1:
                raise RunFenced(
                    f"run {self._run_id} is no longer ours",
                    cause=f"{message.worker} claimed attempt {message.attempt}, this is attempt {self._attempt}",
                )
            if isinstance(message, ly.TrainingRunFailed) and message.attempt in (0, self._attempt):
                raise RunFenced(f"run {self._run_id} was given up", cause=f"{message.reason}: {message.detail}")
            if isinstance(message, ly.AdaptationCommand):
                self._take_command(event)

    def _take_command(self, event: Event) -> None:
        known = self._known.get(event.meta.event_id)
        if known is None:
            self._known[event.meta.event_id] = event.offset
            self._commands.append(event)
        elif event.offset > known:
            detail = f"it stands at offset {known} already"
            self._source.set_aside(event, reason=ly.DEAD_LETTER_REASON_REPLAYED, detail=detail)

    def _next_applicable(self) -> Event | None:
        """Judge what waits and what has arrived, up to the first command that may be applied."""
        if self._due:  # Once for each packet, however often is looked for its command: thousands may wait.
            waiting, self._waiting = self._waiting, []
            self._commands.extendleft(reversed(waiting))
            self._due = False
        while self._commands:
            event = self._commands.popleft()
            command = event.message
            assert isinstance(command, ly.AdaptationCommand), "only commands are queued"
            refusal = self._judge.refusal(command, append_time_ms=event.record.append_time_ms)
            if refusal == COMMAND_NOT_YET:
                self._waiting.append(event)
                continue
            if command.training_run_id == self._run_id:
                self.breaker = self.breaker.heard()
            if not refusal:
                return event
            self._refuse(event, command, refusal)
        return None

    def _refuse(self, event: Event, command: ly.AdaptationCommand, refusal: str) -> None:
        _log.warning("run %s: command %s is not applied: %s", self._run_id, command.command_id, refusal)
        if refusal in _SET_ASIDE:
            detail = f"{refusal}: command {command.command_id} of run {self._run_id}"
            self._source.set_aside(event, reason=_SET_ASIDE[refusal], detail=detail)
        if len(self._late) >= _LISTED_MAX:
            self._unlisted += 1
            return
        self._late.append(
            ly.LateCommand(
                command_id=command.command_id,
                event_id=event.meta.event_id,
                epoch=command.epoch,
                reason=refusal,
                offset=event.offset,
            )
        )

    def _answer(self, event: Event) -> Answer:
        assert isinstance(event.message, ly.AdaptationCommand), "only commands are answers"
        late, unlisted = self._taken_late()
        return Answer(command=event.message, offset=event.offset, late=late, unlisted=unlisted)

    def _no_answer(self, reason: str) -> Answer:
        late, unlisted = self._taken_late()
        return Answer(reason=reason, late=late, unlisted=unlisted)

    def _taken_late(self) -> tuple[tuple[ly.LateCommand, ...], int]:
        late, self._late = tuple(self._late), []
        unlisted, self._unlisted = self._unlisted, 0
        return late, unlisted
