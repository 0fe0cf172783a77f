"""One static member of a consumer group: its connection, its partitions, and how far it has come in them."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.errors import EsperError, NotReadyError
from esper.leyline import Record
from esper.oona._cluster import ClientConfig, Cluster, Position, gathering
from esper.oona._events import Gatekeeper, place_of, record_of
from esper.oona._failures import (
    NO_LONGER_MINE,
    STOOD_STILL,
    Fenced,
    commit_may_pass,
    ends_consumer,
    error_of,
    is_outside_log,
    translate_for_member,
)
from esper.oona.consuming._assignment import committed_offsets, restore_memory, start_offset

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric

_logger = logging.getLogger("esper.oona.membership")

_PROBE_SECONDS: Final = 1.0
_CLOSE_SECONDS: Final = 5.0
_DRAIN_POLL_SECONDS: Final = 0.005
_CONFIRM_POLL_SECONDS: Final = 0.005
#: Messages that are taken from librdkafka at a time, cheapest at 500.
_BATCH: Final = 500
#: While they last, librdkafka is asked this often what else there is: partitions that go, commits, errors.
_SERVE_EVERY_SECONDS: Final = 0.05
#: A reader slower than its fetcher fills the queue again and again; by default each time costs it a second's pause.
_FETCH_BACKOFF_MS: Final = 10


class Membership:
    """A place in a group that outlives broker outages.

    Positions are explicit: a group's first member begins at the low watermark, and no offset is ever reset
    in silence. `gate` is made to remember what the group dealt with before; `before_commit` runs ahead of
    every commit and is given the seconds that it may take, or None.

    One thread works with records; while it is at work with one (`working`), another may `keep_alive` for it. What
    the group takes away meanwhile waits for that work, `settings.member_drain_seconds` at most.
    """

    def __init__(
        self,
        fabric: Fabric,
        *,
        group: str,
        instance: str,
        topics: Sequence[str],
        gate: Gatekeeper,
        before_commit: Callable[[float | None], None],
        gather_seconds: float = 0.0,
    ) -> None:
        self._fabric = fabric
        self._what = f"member {instance} of {group} cannot go on"
        self._topics = list(topics)
        self._gate = gate
        self._before_commit = before_commit
        self._watch = fabric.cluster.watch(self._what)
        self._config = {
            **_config(fabric.cluster, group=group, instance=instance),
            **gathering(gather_seconds),
            "error_cb": self._watch.on_error,
            "on_commit": self._on_commit,
        }
        self._next: dict[Position, int] = {}
        self._uncommitted: set[Position] = set()
        self._gained: list[Position] = []
        #: Messages that were taken from librdkafka and are not asked for yet, in their order.
        self._fetched: deque[KafkaMessage] = deque()
        self._serve_at = 0.0
        #: Records that came while they were held back, or after those messages.
        self._early: deque[Record] = deque()
        self._committing = self._commit_refused = False
        self._paused = self._held_back = False
        self._session_seconds = fabric.settings.member_session_seconds
        self._drain_seconds = fabric.settings.member_drain_seconds
        self._lock = threading.RLock()
        #: Set by the thread that works with records, for as long as it is at work with one.
        self.working = False
        #: Set when nobody asked the group anything for long: the next poll says whether that was too long.
        self.stood_still = False
        #: Whether partitions wait to be given up until that work is done.
        self.draining = False
        #: Grows whenever partitions come or go.
        self.generation = 0
        self._consumer = self._join()

    @property
    def retry_seconds(self) -> float:
        """How long a broker may stay away."""
        return self._watch.retry_seconds

    @property
    def paused(self) -> bool:
        """Whether no records are to be taken."""
        return self._paused

    def check(self) -> None:
        """Raise when this member cannot go on: no broker for too long, fenced, refused, lost its place in the log."""
        with self._lock:
            try:
                self._watch.check(self._broker_answers)
            except Fenced as error:
                self._rejoin(error)

    def next_record(self, timeout: float) -> Record | None:
        """Return the next record that is not dealt with, or None when none came within `timeout` seconds."""
        with self._lock:
            if self._held_back:
                self._let_flow()
            try:
                record = self._take(timeout)
                self._watch.raise_failure()
            except Fenced as error:
                self._rejoin(error)
                return None
        if record is None or record.offset < self._next.get(place_of(record), 0):
            return None
        return record

    def keep_alive(self, timeout: float = 0.0) -> None:
        """Stay a member, as whoever asks for records does, but hold them back; the next `next_record` has them.

        What ends this member is raised by its next `check`.
        """
        with self._lock:
            if not self._held_back:
                self._held_back = True
                self._consumer.pause(self._consumer.assignment())
            self._serve(timeout)

    def confirm(self, place: Position) -> bool:
        """Return whether the group still says that a partition is this member's: ask it, by a commit.

        A member that stood still for longer than its session does not know what was given to another meanwhile.

        Raises:
            BrokerUnavailable: no broker answered within the retry time.
            NotReadyError: the group took no offsets within that time.
        """
        # This thread waits here itself, so that nobody need wait for its work.
        was_working, self.working = self.working, False
        deadline = Deadline(self.retry_seconds)
        try:
            with self._lock:
                self._commit_refused = False
                self._serve(0.0)  # A loss that librdkafka knows of already is told here.
                self._uncommitted |= {place} & self._next.keys()
                while (place in self._uncommitted or self._committing) and place in self._next:
                    self.check()
                    if deadline.expired:
                        raise NotReadyError(self._what, cause="its group took no offsets", next_step="Try again")
                    if not self._committing:
                        self._begin_commit()
                    self._serve(_CONFIRM_POLL_SECONDS)
                if self._commit_refused:
                    self._await_loss(place)
                return place in self._next
        finally:
            self.working = was_working

    def _await_loss(self, place: Position) -> None:
        """Wait until librdkafka knows, too, that a partition is lost; what stands behind its record waits so long.

        Its next heartbeat tells it. To join anew at once would have the old connection's last requests fence the new.
        """
        deadline = Deadline(self._session_seconds)
        while place in self._next and not deadline.expired:
            self.check()
            self._serve(_CONFIRM_POLL_SECONDS)
        if place in self._next:
            self._join_anew()

    def done(self, record: Record) -> None:
        """Take note that a record is dealt with; the next commit says so to the group."""
        place = place_of(record)
        following = self._next.get(place)
        # A partition that went and came back while its record was at work may already be further on.
        if following is not None and following <= record.offset:
            self._next[place] = record.offset + 1
            self._uncommitted.add(place)

    def take_gained(self) -> list[Position]:
        """Return the partitions gained since the last call."""
        gained, self._gained = self._gained, []
        return gained

    def positions(self) -> dict[Position, int]:
        """Return the offset of the next record of each partition held."""
        return dict(self._next)

    def commit(self) -> None:
        """Have what is done committed, without waiting for it; one commit is on its way at a time.

        Raises:
            BrokerUnavailable: what must come before it could not be written.
        """
        if self._uncommitted and not self._committing:
            with self._lock:
                self._begin_commit()

    def pause(self) -> None:
        """Take no more records, but stay a member."""
        with self._lock:
            self._paused = True
            self._consumer.pause(self._consumer.assignment())

    def resume(self) -> None:
        """Take records again."""
        with self._lock:
            self._paused = False
            if not self._held_back:
                self._consumer.resume(self._consumer.assignment())

    def close(self) -> None:
        """Commit what is done and disconnect within seconds; the group keeps the place until the session ends."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        try:
            self._begin_commit(seconds=_CLOSE_SECONDS)
        except EsperError as error:
            # What was handled comes again in the next life, which handles it again under the same ids.
            _logger.warning("the last offsets were not committed: %s", error)
            self._uncommitted.clear()
        finally:
            self._disconnect()

    # Records held back ---------------------------------------------------------------------------------------

    def _let_flow(self) -> None:
        self._held_back = False
        if not self._paused:
            self._consumer.resume(self._consumer.assignment())

    def _take(self, timeout: float) -> Record | None:
        """Return the next record in the order in which they came; what was fetched came before what came early."""
        if self._paused:
            return self._poll(timeout)
        if not self._fetched and not self._early:
            self._fetch(timeout)
        elif SYSTEM_CLOCK.monotonic() >= self._serve_at:
            self._serve(0.0)
        if self._fetched:
            return self._record_of(self._fetched.popleft())
        return self._early.popleft() if self._early else None

    def _fetch(self, timeout: float) -> None:
        """Take what librdkafka holds, waiting up to `timeout` seconds for the first message."""
        first = self._consumer.poll(timeout)
        self.stood_still = False
        self._serve_at = SYSTEM_CLOCK.monotonic() + _SERVE_EVERY_SECONDS
        if first is None:
            return
        self._fetched.append(first)
        generation = self.generation
        rest = self._consumer.consume(_BATCH - 1, 0)
        self._fetched.extend(rest)  # Not sooner: partitions may go while they are collected, and this with them.
        if self.generation != generation:
            self._keep_fetched(lambda place: place in self._next)

    def _keep_fetched(self, is_kept: Callable[[Position], bool]) -> None:
        """Drop the messages of partitions that are not kept; errors stay, whatever they are about."""
        self._fetched = deque(
            message for message in self._fetched if message.error() is not None or is_kept(_place_of_message(message))
        )

    def _poll(self, timeout: float) -> Record | None:
        message = self._consumer.poll(timeout)
        self.stood_still = False
        self._serve_at = SYSTEM_CLOCK.monotonic() + _SERVE_EVERY_SECONDS
        return self._record_of(message)

    def _serve(self, timeout: float) -> None:
        """Let librdkafka call back; a record that comes all the same is kept for `next_record`."""
        try:
            record = self._poll(timeout)
        except EsperError as error:
            self._watch.fail(error)
            return
        if record is not None:
            self._early.append(record)

    # Connection ---------------------------------------------------------------------------------------------

    def _join(self) -> KafkaConsumer:
        consumer = KafkaConsumer(self._config)
        consumer.subscribe(self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)
        return consumer

    def _rejoin(self, error: Fenced) -> None:
        """Join anew after an outage; raise `error` when there was none.

        A static member that outlives its session while the broker is away gets a new member id when it
        returns, and a request of its own under the old id, retried by librdkafka, fences it.
        """
        if not self._watch.forgive():
            raise error
        _logger.info("%s: joining anew after an outage", self._what)
        self._join_anew()

    def _join_anew(self) -> None:
        self._forget(list(self._next))
        self._disconnect()
        self._committing = False
        self._fetched.clear()  # What is left are errors of the old connection.
        self._consumer = self._join()

    def _disconnect(self) -> None:
        """Close the connection, which waits for commits on their way, for at most a few seconds.

        librdkafka's own close waits for them without end when their broker is gone; it is then left alone
        in a daemon thread, which ends with the process.
        """
        closing = threading.Thread(target=self._consumer.close, name="consumer-close", daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)
        if closing.is_alive():
            _logger.warning("%s: its last offsets were not acknowledged", self._what)

    def _record_of(self, message: KafkaMessage | None) -> Record | None:
        if message is None:
            return None
        error = message.error()
        if error is None:
            return record_of(message)
        if error.code() == STOOD_STILL:
            # From now on a commit would be refused as another process's: the connection has no member id any more.
            self._watch.note_trouble()
            self._forget(list(self._next))
        if is_outside_log(error) and self._skip_expired(message):
            return None
        if ends_consumer(error):
            raise translate_for_member(error, self._what)
        _logger.info("%s: %s", self._what, error.str())
        self._watch.on_error(error)
        return None

    def _skip_expired(self, message: KafkaMessage) -> bool:
        """Go on at the first record left of a topic whose records expire; False for a truth topic."""
        topic, partition = message.topic(), message.partition()
        if topic is None or partition is None or self._fabric.topics[topic].truth:
            return False
        low, _ = self._fabric.cluster.watermarks([(topic, partition)])[(topic, partition)]
        _logger.warning("%s-%d: records up to offset %d expired before they were read", topic, partition, low)
        self._next[(topic, partition)] = low
        # Assigned anew: librdkafka seeks in no partition that it has stopped reading.
        self._consumer.assign([TopicPartition(*place, offset) for place, offset in self._next.items()])
        return True

    def _broker_answers(self) -> bool:
        try:
            self._consumer.list_topics(self._topics[0], timeout=_PROBE_SECONDS)
        except KafkaException:
            return False
        return True

    # Offsets ------------------------------------------------------------------------------------------------

    def _begin_commit(self, *, seconds: float | None = None) -> None:
        """Send the offsets of what is done; `_on_commit` hears what became of them.

        Never waits for that: librdkafka's synchronous commit blocks for as long as no broker answers, without end.
        """
        self._before_commit(seconds)
        if not self._uncommitted or self.stood_still:
            return
        offsets = [self._offset_of(place) for place in sorted(self._uncommitted)]
        self._uncommitted.clear()
        self._committing = True
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as exception:
            self._on_commit(error_of(exception), offsets)

    def _on_commit(self, error: KafkaError | None, offsets: list[TopicPartition]) -> None:
        """Take note of a commit's outcome; runs inside `KafkaConsumer.poll` and must not raise."""
        self._committing = False
        for found in offsets:
            problem = error or found.error
            if problem is None:
                continue
            if commit_may_pass(problem):
                self._uncommitted |= {(found.topic, found.partition)} & self._next.keys()
            elif problem.code() in NO_LONGER_MINE:
                self._commit_refused = True
            else:
                self._watch.fail(translate_for_member(problem, self._what))
            _logger.info("%s: offsets were not committed: %s", self._what, problem.str())

    def _offset_of(self, place: Position) -> TopicPartition:
        metadata = self._gate.memory.high_water(*place).to_metadata()
        return TopicPartition(place[0], place[1], self._next[place], metadata)

    # Partitions come and go; these run inside `KafkaConsumer.poll` and must not raise -------------------------

    def _on_assign(self, consumer: KafkaConsumer, partitions: list[TopicPartition]) -> None:
        places = [(found.topic, found.partition) for found in partitions]
        try:
            starts = self._starts(consumer, places)
        except EsperError as error:
            self._watch.fail(error)
            consumer.assign([])
            return
        consumer.assign([TopicPartition(*place, offset) for place, offset in starts.items()])
        self._next.update(starts)
        self._gained += places
        self.generation += 1
        if self._paused or self._held_back:
            consumer.pause(partitions)
        else:  # One that was paused when it was taken away would stay so for ever: librdkafka does not forget it.
            consumer.resume(partitions)

    def _starts(self, consumer: KafkaConsumer, places: Sequence[Position]) -> dict[Position, int]:
        """Return where each partition begins, and restore what the group knows of it."""
        committed = committed_offsets(consumer, places, watch=self._watch)
        ends = self._fabric.cluster.watermarks(places)
        starts: dict[Position, int] = {}
        for place in places:
            low, high = ends[place]
            name, truth = f"{place[0]}-{place[1]}", self._fabric.topics[place[0]].truth
            starts[place] = start_offset(name, committed[place].offset, low=low, high=high, truth=truth)
            restore_memory(self._fabric, self._gate, place, committed[place], low=low, start=starts[place])
        return starts

    def _on_revoke(self, _: KafkaConsumer, partitions: list[TopicPartition]) -> None:
        self._await_work()
        try:
            self._begin_commit()
        except EsperError as error:
            _logger.warning("offsets were not committed before partitions were given up: %s", error)
        self._forget([(found.topic, found.partition) for found in partitions])

    def _on_lost(self, _: KafkaConsumer, partitions: list[TopicPartition]) -> None:
        self._forget([(found.topic, found.partition) for found in partitions])

    def _await_work(self) -> None:
        """Wait until the record at work is dealt with: its partition's next member is not to begin with it again."""
        self.draining, deadline = True, Deadline(self._drain_seconds)
        while self.working and not deadline.expired:
            SYSTEM_CLOCK.sleep(_DRAIN_POLL_SECONDS)
        self.draining = False
        if self.working:
            _logger.warning(
                "%s: partitions are given up while an event is at work; whoever has them next handles it again",
                self._what,
            )

    def _forget(self, places: Sequence[Position]) -> None:
        self.generation += 1
        for place in places:
            self._next.pop(place, None)
            self._uncommitted.discard(place)
        self._early = deque(record for record in self._early if place_of(record) not in places)
        self._keep_fetched(lambda place: place not in places)
        self._gained = [place for place in self._gained if place not in places]


def _place_of_message(message: KafkaMessage) -> Position:
    topic, partition = message.topic(), message.partition()
    assert topic is not None, "a message without error has a topic"
    assert partition is not None, "a message without error has a partition"
    return (topic, partition)


def _config(cluster: Cluster, *, group: str, instance: str) -> ClientConfig:
    session_ms = int(cluster.settings.member_session_seconds * 1000)
    # A member must ask for records at least this often; librdkafka wants it not to be below the session.
    poll_ms = max(session_ms, int(cluster.settings.member_poll_seconds * 1000))
    return {
        **cluster.config(),
        "group.id": group,
        "group.instance.id": instance,
        # KIP-848's protocol refuses a replacement with the same instance id while the dead member's session lasts.
        "group.protocol": "classic",
        "session.timeout.ms": session_ms,
        "heartbeat.interval.ms": session_ms // 6,
        "max.poll.interval.ms": poll_ms,
        # Keeps one run's partitions of several topics with one member: they have equal counts and keys.
        "partition.assignment.strategy": "range",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # We write no transactions; an open one of a stranger would hide everything behind it for as long as it likes.
        "isolation.level": "read_uncommitted",
        # Positions are given at each assignment; one that the log no longer holds must stop the member.
        "auto.offset.reset": "error",
        "fetch.error.backoff.ms": 100,
        "fetch.queue.backoff.ms": _FETCH_BACKOFF_MS,
    }
