"""Waiting for an epoch's command: who may answer, for how long, and when not to wait any more."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from esper.core.clock import SYSTEM_CLOCK, Clock, Deadline
from esper.leyline import messages as ly
from esper.oona import Event
from esper.tolaria._journal import Answer, RunFenced, RunInterrupted

_log = logging.getLogger("esper.tolaria.inbox")

REASON_TIMEOUT: Final = "timeout"
REASON_BREAKER_OPEN: Final = "breaker_open"
#: Two epochs in a row without a command open the breaker: a controller that is away must not cost every
#: further epoch a whole decision wait.
MISSES_MAX: Final = 2
#: How long a read may block, so that a stop is noticed soon; an arriving command ends the read at once.
_READ_SECONDS_MAX: Final = 0.2


class CommandSource(Protocol):
    """Where a run's commands and claims come from, in log order; `esper.oona.Reader` is one."""

    def read(self, timeout: float) -> Sequence[Event]:
        """Return the next authentic events; wait up to `timeout` seconds for the first."""


class CommandJudge(Protocol):
    """Says whether a command may be applied; a fold of the run's own packets and outcomes."""

    def fold(self, event: ly.SystemStatePacket | ly.CommandOutcome) -> None:
        """Take note of an acknowledged event of the run."""

    def refusal(self, command: ly.AdaptationCommand, *, append_time_ms: int) -> str:
        """Return why `command` may not be applied now; "" if it may. `append_time_ms` is its LogAppendTime."""


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
    """Hands out the one command that answers a packet, in log order, and lists those that come too late.

    The caller reports every acknowledged packet and outcome of its run to `fold`.
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
        self._known: set[str] = set()
        self._late: list[ly.LateCommand] = []
        self.breaker = DecisionBreaker()

    def recover(self, packets: Iterable[ly.SystemStatePacket], outcomes: Iterable[ly.CommandOutcome]) -> None:
        """Take note of what an earlier attempt recorded; commands that its outcomes name are not listed again."""
        for packet in packets:
            self._judge.fold(packet)
        for outcome in outcomes:
            self._judge.fold(outcome)
            self.breaker = self.breaker.fold(outcome)
            self._known.add(outcome.command_event_id)
            self._known.update(late.event_id for late in outcome.late_commands)

    def fold(self, event: ly.SystemStatePacket | ly.CommandOutcome) -> None:
        """Take note of an acknowledged event of this attempt."""
        self._judge.fold(event)

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
            if isinstance(message, ly.AdaptationCommand) and event.meta.event_id not in self._known:
                self._commands.append(event)

    def _next_applicable(self) -> Event | None:
        """Judge what has arrived, up to the first command that may be applied."""
        while self._commands:
            event = self._commands.popleft()
            command = event.message
            assert isinstance(command, ly.AdaptationCommand), "only commands are queued"
            self._known.add(event.meta.event_id)
            refusal = self._judge.refusal(command, append_time_ms=event.record.append_time_ms)
            if command.training_run_id == self._run_id:
                self.breaker = self.breaker.heard()
            if not refusal:
                return event
            _log.warning("run %s: command %s is not applied: %s", self._run_id, command.command_id, refusal)
            self._late.append(
                ly.LateCommand(
                    command_id=command.command_id,
                    event_id=event.meta.event_id,
                    epoch=command.epoch,
                    reason=refusal,
                )
            )
        return None

    def _answer(self, event: Event) -> Answer:
        assert isinstance(event.message, ly.AdaptationCommand), "only commands are answers"
        return Answer(command=event.message, offset=event.offset, late=self._taken_late())

    def _no_answer(self, reason: str) -> Answer:
        return Answer(reason=reason, late=self._taken_late())

    def _taken_late(self) -> tuple[ly.LateCommand, ...]:
        late, self._late = tuple(self._late), []
        return late
