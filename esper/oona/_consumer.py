"""The one consumer loop: verify, read the meta, deduplicate, decode, handle, commit."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Self

from confluent_kafka import KafkaException
from google.protobuf.message import Message

from esper.core.clock import Deadline
from esper.core.errors import BrokerUnavailable, EsperError, UsageError
from esper.core.rng import jitter
from esper.leyline import BadRecord, Record
from esper.leyline import messages as ly
from esper.oona._cluster import Position
from esper.oona._counters import ConsumerMetrics, Counters, reason_name
from esper.oona._dead_letters import DeadLetterWriter
from esper.oona._events import Event, Gatekeeper, Handler
from esper.oona._failures import error_of, passes
from esper.oona._membership import Membership

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric
    from esper.oona._publisher import Publisher

_logger = logging.getLogger("esper.oona.consumer")

#: Attempts that a handler gets at an event before the event is set aside.
ATTEMPTS_MAX: Final = 5
#: Records of one poll, after which it commits what it handled; slow handlers have it committed more often.
_BATCH: Final = 500
_COMMIT_EVERY_SECONDS: Final = 0.5
_RUN_POLL_SECONDS: Final = 0.1
_BACKOFF_FIRST_SECONDS: Final = 0.05
_BACKOFF_MAX_SECONDS: Final = 1.0

OnAssign = Callable[[Sequence[Position]], None]


class Consumer:
    """A static member of a consumer group; one thread at a time.

    Each event of a partition is handled in order, at least once: after a crash, those handled since the last
    commit come again. A record that returns in any other way is recognised and not handled again, across
    restarts too. Offsets are sent after handling, at the end of each `poll`; a revoke or `close` waits for
    them. A record that must not be believed, and an event whose handler failed 5 times, become dead letters
    and hold nothing up.
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
    ) -> None:
        self._handlers = {cls.DESCRIPTOR.full_name: handler for cls, handler in handlers.items()}
        _check_handlers(fabric, topics, self._handlers)
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

    def run(self, stop: threading.Event) -> None:
        """Handle events until `stop` is set, then commit and close.

        An event whose handling is being retried when `stop` comes is left for the next life.

        Raises:
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
            Busy: another process runs under this instance id.
            IntegrityError: the log no longer holds what this group has yet to read.
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

        Deals with at most `limit` records and commits what it dealt with. Raises as `run` does.
        """
        self._membership.check()
        taken, wait, commit_due = 0, timeout, Deadline(_COMMIT_EVERY_SECONDS)
        while taken < limit and not self._stop.is_set():
            record = self._membership.next_record(wait)
            wait = 0.0
            self._announce_gained()
            if record is None or not self._deal_with(record):
                break
            taken += 1
            if commit_due.expired:
                self._membership.commit()
                commit_due = Deadline(_COMMIT_EVERY_SECONDS)
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
        return self._counters.snapshot()

    def close(self) -> None:
        """Commit what was handled and disconnect; closing twice does nothing.

        A static member stays in its group until its session ends: the same instance id has its partitions
        back at once, another member after `settings.member_session_seconds`.
        """
        if not self._closed:
            self._closed = True
            self._membership.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _announce_gained(self) -> None:
        gained = self._membership.take_gained()
        if not gained:
            return
        if self._user_on_assign is not None:
            self._user_on_assign(gained)
        self._announce_ready()

    def _deal_with(self, record: Record) -> bool:
        """Bring one record to its end and move past it; False when a stop left it for the next life."""
        self._counters.read += 1
        try:
            finished = self._process(record)
        except BadRecord as bad:
            self._counters.rejected += 1
            self._set_aside(record, bad.reason, bad.detail, attempts=1)
            finished = True
        if finished:
            self._membership.done(record)
        return finished

    def _process(self, record: Record) -> bool:
        meta = self._gate.authenticate(record)
        if not self._gate.is_new(record, meta):
            self._counters.deduplicated += 1
            return True
        handler = self._handlers.get(meta.type)
        if handler is None:
            self._counters.filtered += 1
        elif not self._handle(handler, self._gate.decode(record, meta)):
            return False
        self._gate.remember(record, meta)
        return True

    def _handle(self, handler: Handler, event: Event) -> bool:
        """Call the handler until it succeeds or the event is poison; False when a stop came in between."""
        attempts, backoff = 0, _BACKOFF_FIRST_SECONDS
        deadline = Deadline(self._membership.retry_seconds)
        while True:  # ends by success, after ATTEMPTS_MAX, at the deadline, or by a stop
            try:
                handler(event)
            except BrokerUnavailable:
                raise  # Whoever raised it has waited the retry time already.
            except Exception as error:
                if _is_passing(error):
                    if deadline.expired:
                        raise
                else:
                    attempts += 1
                    if attempts >= ATTEMPTS_MAX:
                        self._poison(event, error, attempts)
                        return True
                _logger.info("%s-%d-%d failed: %r", event.topic, event.partition, event.offset, error)
            else:
                self._counters.handled += 1
                return True
            self._counters.retried += 1
            if self._stop.wait(jitter(backoff)):
                return False
            backoff = min(2 * backoff, _BACKOFF_MAX_SECONDS)

    def _poison(self, event: Event, error: Exception, attempts: int) -> None:
        place = (event.topic, event.partition, event.offset)
        _logger.error("%s-%d-%d is set aside after %d attempts", *place, attempts, exc_info=error)
        detail = f"{type(error).__name__}: {error}"
        self._set_aside(event.record, ly.DEAD_LETTER_REASON_HANDLER_FAILED, detail, attempts=attempts)

    def _set_aside(self, record: Record, reason: ly.DeadLetterReason, detail: str, *, attempts: int) -> None:
        self._letters.write(record, reason=reason, detail=detail, attempts=attempts)
        self._counters.dead_lettered[reason_name(reason)] += 1


def _is_passing(error: Exception) -> bool:
    """Return whether the same call may succeed later."""
    if isinstance(error, EsperError):
        return error.retriable
    return isinstance(error, KafkaException) and passes(error_of(error))


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
