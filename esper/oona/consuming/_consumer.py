"""The one consumer loop: verify, read the meta, deduplicate, decode, handle, commit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self

from google.protobuf.message import Message

from esper.core.clock import SYSTEM_CLOCK
from esper.core.errors import UsageError
from esper.leyline import BadRecord, Record
from esper.leyline import messages as ly
from esper.oona._cluster import Position
from esper.oona._counters import ConsumerMetrics, Counters, reason_name
from esper.oona._events import Event, Gatekeeper, Handler, place_of
from esper.oona.consuming._handling import attempt
from esper.oona.consuming._keepalive import KeepAlive
from esper.oona.consuming._membership import Membership
from esper.oona.letters._dead_letters import DeadLetterWriter
from esper.oona.letters._guard import ConsumeBreaker
from esper.oona.letters._parking import parking_key
from esper.oona.letters._parking_log import Parking
from esper.oona.letters._redrive import Failed, Left, Redriver

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric
    from esper.oona.publishing._publisher import Publisher

#: Records of one poll, after which it commits what it handled; slow handlers have it committed more often.
_BATCH: Final = 500
_COMMIT_EVERY_SECONDS: Final = 0.5
_RUN_POLL_SECONDS: Final = 0.1
_WAITS: Final = "an earlier event of its key is parked"

OnAssign = Callable[[Sequence[Position]], None]


class Consumer:
    """A static member of a consumer group; one thread at a time.

    Each event of a partition is handled in order, at least once: after a crash, those handled since the last
    commit come again. A record that returns in any other way is recognised and not handled again, across
    restarts too. Offsets are sent after handling, at the end of each `poll`; a revoke or `close` waits for
    them. A record that must not be believed becomes a dead letter and holds nothing up.

    An event whose handler failed 5 times is parked, and its key with it: the key's later events wait until
    somebody redrives or discards the parked one, then are handled in their order; other keys go on. A handler
    that raises BadRecord refuses its event for good: it becomes a dead letter of that reason, and its key goes on.
    A handler may take longer than `settings.member_poll_seconds`: its member keeps its partitions meanwhile.
    """

    def __init__(
        self,
        fabric: Fabric,
        *,
        group: str,
        instance: str,
        topics: Sequence[str],
        handlers: Mapping[type[Message], Handler],
        publisher: Publisher,
        on_assign: OnAssign | None = None,
        gather_seconds: float = 0.0,
        hear_first: Callable[[], None] | None = None,
    ) -> None:
        self._hear_first = hear_first or _nothing
        self._handlers = {cls.DESCRIPTOR.full_name: handler for cls, handler in handlers.items()}
        _check_handlers(fabric, topics, self._handlers)
        self._settings = fabric.settings
        self._user_on_assign = on_assign
        self._announce_ready = fabric.announce_ready
        self._gate = Gatekeeper(keyring=fabric.keyring, topics=fabric.topics)
        self._letters = DeadLetterWriter(fabric, publisher, group=group)
        self._counters = Counters()
        self._stop = threading.Event()
        self._closed = False
        self._membership = Membership(
            fabric,
            group=group,
            instance=instance,
            topics=topics,
            gate=self._gate,
            before_commit=self._letters.settle,
            gather_seconds=gather_seconds,
        )
        self._parking = Parking(fabric, self._letters, group=group, positions=self._membership.positions)
        self._redriver = Redriver(fabric, self._parking, attempt=self._attempt_parked)
        self._breaker = ConsumeBreaker(
            f"member {instance} of {group}",
            failures_max=fabric.settings.consume_failures_max,
            open_seconds=fabric.settings.consume_open_seconds,
        )
        self._keep_alive = KeepAlive(
            self._membership,
            self._progress,
            poll_seconds=fabric.settings.member_poll_seconds,
            seconds_max=fabric.settings.handler_seconds_max,
        )

    def run(self, stop: threading.Event) -> None:
        """Handle events until `stop` is set, then commit and close.

        An event whose handling is being retried when `stop` comes is left for the next life.

        Raises:
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
            Busy: another process runs under this instance id.
            IntegrityError: the log no longer holds what this group has yet to read.
            OperationFailed: more keys or records would be parked than the settings allow.
            EsperError: a handler kept failing for a passing reason until the retry time was over.
        """
        self._stop = stop
        try:
            while not stop.is_set():
                self.poll(_RUN_POLL_SECONDS)
        finally:
            self.close()

    def poll(self, timeout: float, *, limit: int = _BATCH) -> int:
        """Deal with the records that are there, waiting up to `timeout` seconds for the first; count them.

        Deals with at most `limit` records, and before them with at most as many parked ones that may go on, which
        are not counted. Commits what it dealt with. Raises as `run` does.
        """
        self._membership.check()
        self._hear_first()
        taken, wait, commit_at = 0, timeout, SYSTEM_CLOCK.monotonic() + _COMMIT_EVERY_SECONDS
        if self._parking.active and not self._membership.paused and self._redrive(limit):
            wait = 0.0
        while taken < limit and not self._stop.is_set():
            if self._breaker.strained and not self._breaker.admits():
                self._membership.keep_alive(wait)
                break
            record = self._membership.next_record(wait)
            wait = 0.0
            self._announce_gained()
            if record is None:
                break
            self._hear_first()
            if not self._deal_with(record):
                break
            taken += 1
            if SYSTEM_CLOCK.monotonic() >= commit_at:
                self._membership.commit()
                commit_at = SYSTEM_CLOCK.monotonic() + _COMMIT_EVERY_SECONDS
        self._membership.commit()
        return taken

    def pause(self) -> None:
        """Take no more records, but stay a member: `poll` goes on to keep the group informed."""
        self._membership.pause()

    def resume(self) -> None:
        """Take records again after `pause`."""
        self._membership.resume()

    def assignment(self) -> list[Position]:
        """Return the partitions that this member holds now."""
        return sorted(self._membership.positions())

    def positions(self) -> dict[Position, int]:
        """Return the offset of the next record of each partition that this member holds."""
        return self._membership.positions()

    def metrics(self) -> ConsumerMetrics:
        """Return a snapshot of the counters."""
        return replace(
            self._counters.snapshot(),
            parked_keys=self._parking.keys,
            parked_records=self._parking.records,
            breaker=ly.CircuitBreakerState.Name(self._breaker.state()).removeprefix("CIRCUIT_STATE_"),
        )

    def close(self) -> None:
        """Commit what was handled and disconnect; closing twice does nothing.

        A static member stays in its group until its session ends: the same instance id has its partitions
        back at once, another member after `settings.member_session_seconds`.
        """
        if not self._closed:
            self._closed = True
            self._keep_alive.close()
            self._membership.close()
            self._redriver.close()
            self._parking.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Say that this thread is at work, so that the group is answered by another one and waits for it."""
        self._membership.working = True
        try:
            yield
        finally:
            self._membership.working = False

    def _progress(self) -> int:
        return self._counters.read + self._counters.redriven + self._counters.retried

    def _announce_gained(self) -> None:
        gained = self._membership.take_gained()
        if not gained:
            return
        with self._working():
            if self._handlers:  # Who handles nothing parks nothing.
                self._parking.rebuild()
            if self._user_on_assign is not None:
                self._user_on_assign(gained)
        self._announce_ready()

    def _deal_with(self, record: Record) -> bool:
        """Bring one record to its end and move past it; False when it was left for the next life or member."""
        self._counters.read += 1
        self._membership.working = True
        try:
            self._process(record)
        except BadRecord as bad:
            self._counters.rejected += 1
            self._letters.write(record, reason=bad.reason, detail=bad.detail, attempts=1)
            self._counters.dead_lettered[reason_name(bad.reason)] += 1
        except Left:
            self._membership.working = False
            return False
        except BaseException:
            self._membership.working = False
            raise
        if self._parking.active:
            self._parking.passed(record)
        # Before the work is said to be over: what is given up then is committed as far as this.
        self._membership.done(record)
        self._membership.working = False
        return True

    def _process(self, record: Record) -> None:
        opened = self._gate.open(record, wanted=self._handlers)
        place = opened.place
        if not self._gate.is_new(record, place) or (self._parking.active and self._parking.is_known(record)):
            self._counters.deduplicated += 1
            return
        handler = self._handlers.get(opened.meta.type)
        if handler is None:
            self._counters.filtered += 1
        else:
            event = opened.event()
            if self._parking.active and self._parking.must_wait(record):
                self._park(record, ly.DEAD_LETTER_REASON_WAITS_FOR_KEY, Failed(_WAITS, 0))
            else:
                try:
                    self._handle(handler, event)
                except BadRecord:
                    self._gate.remember(record, place)  # Refused for good: a copy of it is not asked about again.
                    raise
        self._gate.remember(record, place)

    def _handle(self, handler: Handler, event: Event) -> None:
        """Handle an event, or park it when it is poison."""
        failed = self._attempt(handler, event)
        if failed is None:
            self._counters.handled += 1
            if self._breaker.strained:
                self._breaker.succeeded()
            return
        # A member that stood still may have lost the partition; what it parked then would block the key of another.
        if not self._membership.confirm(place_of(event.record)):
            raise Left
        self._park(event.record, ly.DEAD_LETTER_REASON_HANDLER_FAILED, failed)
        self._breaker.failed(parking_key(event.record.key))

    def _attempt(self, handler: Handler, event: Event) -> Failed | None:
        return attempt(
            handler,
            event,
            counters=self._counters,
            retry_seconds=self._membership.retry_seconds,
            stop=self._stop,
            taken_away=lambda: self._membership.draining,
        )

    def _park(self, record: Record, reason: ly.DeadLetterReason, failed: Failed) -> None:
        settings = self._settings
        self._parking.check_room(record, keys_max=settings.parked_keys_max, records_max=settings.parked_records_max)
        self._parking.park(record, reason=reason, detail=failed.detail, attempts=failed.attempts)
        self._counters.dead_lettered[reason_name(reason)] += 1

    # What is parked and may go on ----------------------------------------------------------------------------

    def _redrive(self, limit: int) -> bool:
        """Handle parked events that may go on; return whether there were any."""
        with self._working():
            if not self._parking.follow():
                return False
            generation = self._membership.generation
            try:
                self._redriver.turn(lambda: self._still_mine(generation), limit=limit)
            except Left:
                return False
            self._letters.settle()
        return True

    def _still_mine(self, generation: int) -> bool:
        mine = self._membership.generation == generation and not self._membership.draining
        return mine and not self._stop.is_set() and not self._membership.paused

    def _attempt_parked(self, record: Record) -> Failed | None:
        try:
            meta = self._gate.authenticate(record)
            event = self._gate.decode(record, meta)
            handler = self._handlers.get(meta.type)
            failed = self._attempt(handler, event) if handler is not None else None
        except BadRecord as bad:
            return Failed(f"it may no longer be believed: {bad}", 1)
        if failed is None:
            self._counters.redriven += 1
            if self._breaker.strained:
                self._breaker.succeeded()
        elif not self._membership.confirm(place_of(record)):
            raise Left
        return failed


def _nothing() -> None:
    """Hear nothing first."""


def _check_handlers(fabric: Fabric, topics: Sequence[str], handlers: Mapping[str, Handler]) -> None:
    """Refuse handlers that no subscribed topic can ever call."""
    if not topics:
        raise UsageError("a consumer needs a topic", cause="no topics were given")
    carried = {type_name for name in topics for type_name in fabric.topics[name].types}
    strangers = sorted(handlers.keys() - carried)
    if strangers:
        raise UsageError(
            f"handlers for {', '.join(strangers)} would never be called",
            cause=f"the topics {', '.join(topics)} do not carry them",
            next_step="Subscribe to their topics too",
        )
