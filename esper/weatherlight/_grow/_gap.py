"""Training on while no broker answers, without growth: what could not be said is said, in order, when one does."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import BrokerUnavailable
from esper.core.pacing import Pace
from esper.core.ports import BlueprintRuntime, FetchedKernel, KernelUnavailable
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.tolaria import Answer, TrainingJournal

_log = logging.getLogger("esper.grow")

#: The reason of every outcome in a gap.
REASON_LOG_GAP: Final = "log_gap"
#: How often connections are opened anew while a broker comes and goes: each takes threads and seconds of training.
_FIRST_SECONDS, _MOST_SECONDS = 1.0, 30.0

_Entry = Callable[[TrainingJournal], None]


class GapJournal:
    """A journal that outlives its broker. Not safe to share between threads.

    `connect` opens a live journal, and raises BrokerUnavailable while it cannot; `answers` says at little cost
    whether a broker is there; `tell_gap(first_epoch, last_epoch, seconds)` appends that there was a gap. In a gap
    no command is waited for, every outcome is "log_gap", and what seeds must suffer, a fault's cull, happens before
    the log knows of it. Events that were under way when the broker went may stand in the log twice, under one id.
    A broker that comes and goes is connected to ever more seldom (`Pace`); until then the gap goes on.
    """

    def __init__(
        self,
        *,
        connect: Callable[[], TrainingJournal],
        answers: Callable[[], bool],
        tell_gap: Callable[[int, int, float], None],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._connect = connect
        self._answers = answers
        self._tell_gap = tell_gap
        self._clock = clock
        self._connections = Pace(first_seconds=_FIRST_SECONDS, most_seconds=_MOST_SECONDS, clock=clock)
        self._live: TrainingJournal | None = connect()
        self._unsaid: deque[_Entry] = deque()
        self._epochs: list[int] = []
        self._since = 0.0

    @property
    def in_gap(self) -> bool:
        """Whether something is still to be said."""
        return self._live is None

    def append_seed_events(self, epoch: int, events: Sequence[EventMessage]) -> None:
        """Append what happened to seeds, now or later."""
        if events:
            self._say(lambda journal: journal.append_seed_events(epoch, events))

    def append_state(self, packet: ly.SystemStatePacket) -> None:
        """Append the state at the end of an epoch, now or later; in a gap, see first whether it is over."""
        self.try_to_close()
        self._say(lambda journal: journal.append_state(packet))

    def await_command(self, packet: ly.SystemStatePacket) -> Answer:
        """Return the command that answers `packet`; in a gap there is none."""
        if self._live is not None:
            try:
                return self._live.await_command(packet)
            except BrokerUnavailable as error:
                self._lose(error)
        self._epochs.append(packet.current_epoch)
        return Answer(reason=REASON_LOG_GAP)

    def append_outcome(self, outcome: ly.CommandOutcome) -> None:
        """Append what became of the epoch's command, now or later."""
        self._say(lambda journal: journal.append_outcome(outcome))

    def append_return(self, outcome: ly.CommandOutcome) -> None:
        """Append the event of a return to a checkpoint, now or later."""
        self._say(lambda journal: journal.append_return(outcome))

    def submit_telemetry(self, epoch: int, packet: ly.TelemetryPacket) -> None:
        """Hand over telemetry; in a gap it is dropped."""
        if self._live is not None:
            self._live.submit_telemetry(epoch, packet)

    def try_to_close(self, *, unpaced: bool = False) -> bool:
        """Say what is unsaid if a broker answers; return whether nothing is left. Does nothing outside a gap.

        Connects no more often than its pace allows, unless `unpaced`: whoever asks so waits between two tries.
        """
        if self._live is not None:
            return True
        if not self._answers() or not (self._connections.may() or unpaced):
            return False
        try:
            self._close()
        except BrokerUnavailable as error:
            _log.info("the broker was back and is gone again: %s", error)
            return False
        return True

    def _say(self, entry: _Entry) -> None:
        if self._live is not None:
            try:
                entry(self._live)
            except BrokerUnavailable as error:
                self._lose(error)
            else:
                return
        self._unsaid.append(entry)

    def _lose(self, error: BrokerUnavailable) -> None:
        self._live = None
        self._since = self._clock.monotonic()
        _log.warning("training goes on without growth and without a record until a broker answers: %s", error)

    def _close(self) -> None:
        journal = self._connect()
        while self._unsaid:
            self._unsaid[0](journal)
            self._unsaid.popleft()
        if self._epochs:
            self._tell_gap(self._epochs[0], self._epochs[-1], self._clock.monotonic() - self._since)
            _log.warning("epochs %d to %d are recorded now", self._epochs[0], self._epochs[-1])
        self._epochs = []
        self._live = journal


class RenewedRuntime:
    """A kernel runtime that is opened anew after its broker was away; meanwhile there are no kernels."""

    def __init__(self, open_runtime: Callable[[], BlueprintRuntime], *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._open = open_runtime
        self._openings = Pace(first_seconds=_FIRST_SECONDS, most_seconds=_MOST_SECONDS, clock=clock)
        self._runtime: BlueprintRuntime | None = open_runtime()

    def fetch_kernel(self, request: ly.KernelRequestSpec, *, run_id: str, wait_seconds: float) -> FetchedKernel:
        """Return the kernel for `request`.

        Raises:
            KernelUnavailable: it was refused, not there in time, or no broker answered.
        """
        return self._asked(lambda one: one.fetch_kernel(request, run_id=run_id, wait_seconds=wait_seconds))

    def fetch_by_digest(self, artifact_ref: str) -> FetchedKernel:
        """Return the very kernel of this digest; raises as `fetch_kernel`."""
        return self._asked(lambda one: one.fetch_by_digest(artifact_ref))

    def _asked(self, ask: Callable[[BlueprintRuntime], FetchedKernel]) -> FetchedKernel:
        if self._runtime is None and not self._openings.may():
            raise KernelUnavailable(
                "no kernel can be had",
                reason=REASON_LOG_GAP,
                cause="the broker comes and goes, and connections to it are opened ever more seldom",
                next_step="Wait until it stays",
            )
        try:
            self._runtime = self._runtime or self._open()
            return ask(self._runtime)
        except BrokerUnavailable as error:
            self._runtime = None
            raise KernelUnavailable(
                "no kernel can be had", reason=REASON_LOG_GAP, cause=error.cause, next_step=error.next_step
            ) from error
