"""Hearing emergencies first: one reader of the topic `emergency` per process, asked before every record."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Final, cast
from weakref import WeakSet

from esper.core.clock import SYSTEM_CLOCK
from esper.core.errors import BrokerUnavailable, EsperError
from esper.leyline import CLOCK_SKEW_MS_MAX
from esper.leyline import messages as ly
from esper.oona._events import Event, Handler
from esper.oona.emergency._state import EmergencyState, Standing
from esper.oona.reading._range import AtTime, offsets_at
from esper.oona.reading._reader import Reader

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric

_logger = logging.getLogger("esper.oona.emergency")

EMERGENCY: Final = "emergency"
_PLACE: Final = (EMERGENCY, 0)
#: Of a long history only the end is of interest.
_HISTORY_RECORDS: Final = 10_000
_READ_SECONDS: Final = 0.25
_CLOSE_SECONDS: Final = 5.0
#: After an outage the topic is followed again, from the first signal that was not heard.
_RETRY_SECONDS: Final = 1.0
#: Signals that wait for one consumer; the watch reads on when it has heard some, and Kafka keeps the rest.
_WAITING_MAX: Final = 10_000
#: Signals that are handed to a consumer that begins while they are in force.
_RECENT_MAX: Final = 1_000


class EmergencyWatch:
    """Follows the topic `emergency` in a thread of its own, so that a signal waits behind no handler's backlog.

    Safe to share between threads. `level` and `conservative` are functions of the signals read and of the time.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._state = EmergencyState(fabric.settings.emergency_hold_seconds)
        self._signals = 0
        self._next = 0
        self._recent: deque[Event] = deque(maxlen=_RECENT_MAX)
        self._inboxes: WeakSet[EmergencyInbox] = WeakSet()
        self._lock = threading.Lock()
        self._failure: EsperError | None = None
        self._caught_up = threading.Event()
        self._closing = threading.Event()
        #: Whether the topic was read to its end at the start and nothing is wrong.
        self.following = False
        self._thread = threading.Thread(target=self._run, name="emergency-watch", daemon=True)
        self._thread.start()

    @property
    def signals(self) -> int:
        """How many signals were read."""
        return self._signals

    def level(self) -> ly.EmergencyLevel:
        """Return the highest level in force now; UNSPECIFIED when there is none."""
        return self._state.level(_now_ms())

    def conservative(self) -> bool:
        """Return whether a signal in force calls for conservative mode."""
        return self._state.in_force(_now_ms())

    def calls(self) -> tuple[Standing, ...]:
        """Return the signals in force that call for conservative mode, each with its origin, run and event."""
        return self._state.calls(_now_ms())

    def inbox(self, on_emergency: Handler | None) -> EmergencyInbox:
        """Return the inbox of one consumer, with the signals that are in force; None: the fabric alone hears them."""
        inbox = EmergencyInbox(self, on_emergency or _hear_only)
        if on_emergency is None:
            return inbox
        with self._lock:
            now_ms, hold_ms = _now_ms(), self._state.hold_seconds * 1000
            for event in self._recent:
                if event.record.append_time_ms + hold_ms > now_ms:
                    inbox.waiting.append(event)
            self._inboxes.add(inbox)
        return inbox

    def await_following(self) -> None:
        """Wait until the topic was read to its end.

        Raises:
            BrokerUnavailable: it could not be read within `settings.broker_retry_seconds`.
            EsperError: reading it failed.
        """
        seconds = self._fabric.settings.broker_retry_seconds
        in_time = self._caught_up.wait(seconds)
        if self._failure is not None:
            raise self._failure
        if not in_time:
            raise BrokerUnavailable(
                "nothing may be handled before the emergencies are heard",
                cause=f"the topic {EMERGENCY} was not read within {seconds:g} seconds",
                next_step="Is the broker up?",
            )

    def close(self) -> None:
        """End the thread; closing twice does nothing."""
        self._closing.set()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._follow()
            except EsperError as error:
                if not self._closing.is_set():
                    _logger.warning("emergencies cannot be heard for now: %s", error)
                self._failure = error
            finally:
                self.following = False
                self._caught_up.set()
            self._closing.wait(_RETRY_SECONDS)

    def _follow(self) -> None:
        with Reader(self._fabric, {_PLACE: self._start()}, rejects=None) as reader:
            for event in reader.read_to_end(self._fabric.settings.broker_retry_seconds):
                self._hear(event)
            self._failure = None
            self.following = True
            self._caught_up.set()
            while not self._closing.is_set():
                for event in reader.read(_READ_SECONDS):
                    self._hear(event)

    def _start(self) -> int:
        """Return where to begin: no later than what may be in force, however much was written behind it since."""
        low, high = self._fabric.cluster.watermarks([_PLACE])[_PLACE]
        since_ms = int(_now_ms() - self._state.hold_seconds * 1000) - CLOCK_SKEW_MS_MAX
        in_force = offsets_at(self._fabric, AtTime(since_ms), [_PLACE])[_PLACE]
        return max(low, self._next, min(high - _HISTORY_RECORDS, in_force))

    def _hear(self, event: Event) -> None:
        signal = cast("ly.EmergencySignal", event.message)
        with self._lock:
            self._state = self._state.fold(signal, event.record.append_time_ms)
            self._signals += 1
            self._recent.append(event)
            self._next = event.record.offset + 1
            inboxes = list(self._inboxes)
        level = ly.EmergencyLevel.Name(signal.level)
        _logger.log(logging.INFO, "%s by %s: %s", level, signal.origin, signal.reason)
        for inbox in inboxes:
            while len(inbox.waiting) >= _WAITING_MAX and not self._closing.is_set():
                self._closing.wait(_READ_SECONDS)
            inbox.waiting.append(event)


class EmergencyInbox:
    """The signals that one consumer has yet to hear; it calls `hear` before each record and in each poll."""

    def __init__(self, watch: EmergencyWatch, on_emergency: Handler) -> None:
        self._watch = watch
        self._on_emergency = on_emergency
        self.waiting: deque[Event] = deque()

    def hear(self) -> None:
        """Hand over what waits, in the order of the log; the first call waits until the topic was read.

        A signal whose handler raises stays first and is handed over again.

        Raises:
            BrokerUnavailable: the topic cannot be read.
        """
        if self._watch.following and not self.waiting:
            return
        self._watch.await_following()
        while self.waiting:
            self._on_emergency(self.waiting[0])
            self.waiting.popleft()


def _hear_only(_: Event) -> None:
    """Do nothing with a signal: the fabric itself has taken note of it."""


def _now_ms() -> float:
    return SYSTEM_CLOCK.now_ns() / 1e6
