"""Reading partitions by position, without a group: replay from any offset, then follow the tail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal, Self

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from esper.core.clock import Deadline
from esper.core.errors import NotReadyError, UsageError
from esper.leyline import EVENT_TYPES, NO_RECORDS, BadRecord, Record, RecordColumns
from esper.leyline import messages as ly
from esper.oona._cluster import ClientConfig, Cluster, Position, gathering
from esper.oona._counters import ConsumerMetrics, Counters, reason_name
from esper.oona._events import Event, Gatekeeper, columns_of
from esper.oona._failures import END_OF_PARTITION, ends_consumer, translate
from esper.oona.letters._dead_letters import DeadLetterWriter

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric
    from esper.oona.publishing._publisher import Publisher

_logger = logging.getLogger("esper.oona.reader")

Start = int | Literal["begin", "end"]
OnReject = Callable[[Record, BadRecord], None]
#: Whether a record is wanted at all, asked before anything of it is believed.
Only = Callable[[Record], bool]

_BATCH: Final = 500
_PROBE_SECONDS: Final = 1.0
#: librdkafka demands a group name even of clients that join none.
_NO_GROUP: Final = "esper.reader"


class Reader:
    """Reads events of given partitions from given positions; one thread at a time.

    Every offset is read once and in order within its partition. A record that must not be believed is
    skipped, and set aside through `rejects` where that is given; one that stood in the partition before,
    as far as this reader has read it, is skipped too.
    """

    def __init__(
        self,
        fabric: Fabric,
        positions: Mapping[Position, Start],
        *,
        rejects: Publisher | None,
        gather_seconds: float = 0.0,
    ) -> None:
        _check_places(fabric, positions)
        self._what = f"{', '.join(sorted({topic for topic, _ in positions}))} cannot be read"
        self._cluster = fabric.cluster
        self._watch = fabric.cluster.watch(self._what)
        self._gate = Gatekeeper(keyring=fabric.keyring, topics=fabric.topics)
        self._letters = DeadLetterWriter(fabric, rejects, group=_NO_GROUP) if rejects else None
        self._counters = Counters()
        self._refused = fabric.refused
        self._at_end: set[Position] = set()
        self._closed = False
        self._next = _resolve(fabric.cluster, positions)
        self._consumer = KafkaConsumer(
            reader_config(fabric.cluster) | gathering(gather_seconds) | {"error_cb": self._watch.on_error}
        )
        self._consumer.assign([TopicPartition(*place, offset) for place, offset in self._next.items()])

    def read(
        self, timeout: float, *, limit: int = _BATCH, on_reject: OnReject | None = None, only: Only | None = None
    ) -> list[Event]:
        """Return the next events, at most `limit`; wait up to `timeout` seconds for the first record.

        Returns nothing when none came, or when all that came was skipped. Records that `only` does not want are
        passed over unverified, which is many times faster.

        Raises:
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
            IntegrityError: the log does not hold a position that is to be read.
        """
        records = [record for record in self.read_raw(timeout, limit) if only is None or only(record)]
        events = [event for record in records if (event := self._admit(record, on_reject))]
        if self._letters is not None:
            self._letters.settle()
        return events

    def read_raw(self, timeout: float, limit: int = _BATCH) -> list[Record]:
        """Return the next records as Kafka holds them, unverified; waits and raises as `read` does."""
        return list(self.read_columns(timeout, limit).records())

    def read_columns(self, timeout: float, limit: int = _BATCH) -> RecordColumns:
        """Return what `read_raw` does, without an object for each record."""
        self._watch.check(self._broker_answers)
        first = self._consumer.poll(timeout)
        if first is None:
            return NO_RECORDS
        rest = self._consumer.consume(limit - 1, 0) if limit > 1 else []
        return self._take([first, *rest])

    def read_to_end(self, deadline_seconds: float = 30.0, *, on_reject: OnReject | None = None) -> list[Event]:
        """Return all events up to the ends that the partitions have at the time of the call.

        Raises:
            NotReadyError: the ends were not reached within `deadline_seconds`.
            BrokerUnavailable, IntegrityError: as `read`.
        """
        deadline = Deadline(deadline_seconds)
        ends = {place: high for place, (_, high) in self._cluster.watermarks(self._next).items()}
        events: list[Event] = []
        while any(self._next[place] < end for place, end in ends.items()):
            if deadline.expired:
                left = sum(max(0, end - self._next[place]) for place, end in ends.items())
                raise NotReadyError(
                    self._what,
                    cause=f"{left} records were left after {deadline_seconds:g} seconds",
                    next_step="Try again, or give more time",
                )
            events += self.read(min(deadline.remaining_seconds, 1.0), on_reject=on_reject)
        return events

    def set_aside(self, event: Event, *, reason: ly.DeadLetterReason, detail: str) -> None:
        """Append a dead letter for an authentic event that its reader refuses; the next `read` waits for it.

        The letter needs no key to wait, unlike that of a handler which failed. Without `rejects` it is only counted.

        Raises:
            BrokerUnavailable: the topic of dead letters could not be read or written.
        """
        self._counters.dead_lettered[reason_name(reason)] += 1
        self._refused[reason_name(reason)] += 1
        if self._letters is not None:
            self._letters.write(event.record, reason=reason, detail=detail, attempts=1)

    def positions(self) -> dict[Position, int]:
        """Return the offset of the next record of each partition."""
        return dict(self._next)

    def at_end(self) -> bool:
        """Return whether every record is read that the partitions held when they were last asked."""
        return all(place in self._at_end or self._is_read(place) for place in self._next)

    def metrics(self) -> ConsumerMetrics:
        """Return a snapshot of the counters."""
        return self._counters.snapshot()

    def close(self) -> None:
        """Release the connections; closing twice does nothing."""
        if not self._closed:
            self._closed = True
            self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_read(self, place: Position) -> bool:
        """Return whether a partition is read up to the end that its last fetch reported."""
        _, high = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)
        return 0 <= high <= self._next[place]

    def _take(self, messages: Sequence[KafkaMessage]) -> RecordColumns:
        """Return the records among the messages and move past them."""
        errors = [message.error() for message in messages]
        good = messages if not any(errors) else [one for one, error in zip(messages, errors, strict=True) if not error]
        records = columns_of(good)
        # Of each partition the last one counts.
        ends = dict(zip(zip(records.topic, records.partition, strict=True), records.offset, strict=True))
        for place, last in ends.items():
            self._next[place] = last + 1
        self._at_end.difference_update(ends)
        if good is not messages:
            for message, error in zip(messages, errors, strict=True):
                if error is not None:
                    self._on_message_error(error, message)
        self._counters.read += len(records)
        return records

    def _on_message_error(self, error: KafkaError, message: KafkaMessage) -> None:
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        if error.code() == END_OF_PARTITION:
            assert topic is not None, "an end of partition names its topic"
            assert partition is not None, "an end of partition names its partition"
            assert offset is not None, "an end of partition names its offset"
            place = (topic, partition)
            if offset >= self._next[place]:  # Else more was read since.
                # Transaction markers and deleted records leave gaps, so the end may lie beyond the last record + 1.
                self._next[place] = offset
                self._at_end.add(place)
        elif ends_consumer(error):
            raise translate(error, self._what)
        else:
            self._watch.on_error(error)

    def _admit(self, record: Record, on_reject: OnReject | None) -> Event | None:
        """Return the record's event if it is authentic and new."""
        try:
            opened = self._gate.open(record, wanted=EVENT_TYPES)
            if not self._gate.is_new(record, opened.place):
                self._counters.deduplicated += 1
                return None
            event = opened.event()
        except BadRecord as bad:
            self._reject(record, bad, on_reject)
            return None
        self._gate.remember(record, opened.place)
        self._counters.handled += 1
        return event

    def _reject(self, record: Record, bad: BadRecord, on_reject: OnReject | None) -> None:
        self._counters.rejected += 1
        _logger.debug("%s-%d-%d skipped: %s", record.topic, record.partition, record.offset, bad)
        if on_reject is not None:
            on_reject(record, bad)
        if self._letters is not None:
            self._letters.write(record, reason=bad.reason, detail=bad.detail, attempts=1)
            self._counters.dead_lettered[reason_name(bad.reason)] += 1

    def _broker_answers(self) -> bool:
        try:
            self._consumer.list_topics(next(iter(self._next))[0], timeout=_PROBE_SECONDS)
        except KafkaException:
            return False
        return True


def _check_places(fabric: Fabric, positions: Mapping[Position, Start]) -> None:
    """Refuse partitions that no topic file names: the cluster would be asked for them in vain."""
    if not positions:
        raise UsageError("a reader needs a partition", cause="no positions were given")
    for topic, partition in positions:
        count = fabric.topics[topic].partitions
        if not 0 <= partition < count:
            raise UsageError(f"there is no partition {topic}-{partition}", cause=f"the topic has {count} partitions")


def _resolve(cluster: Cluster, positions: Mapping[Position, Start]) -> dict[Position, int]:
    """Return a number for each position, asking the cluster for those that are words."""
    words = [place for place, start in positions.items() if isinstance(start, str)]
    ends = cluster.watermarks(words, seconds=cluster.settings.broker_retry_seconds)
    resolved: dict[Position, int] = {}
    for place, start in positions.items():
        if isinstance(start, int):
            resolved[place] = start
        else:
            low, high = ends[place]
            resolved[place] = low if start == "begin" else high
    return resolved


def reader_config(cluster: Cluster) -> ClientConfig:
    """Return the settings of a client that reads partitions by position, joins no group and commits nothing."""
    return {
        **cluster.config(),
        "group.id": _NO_GROUP,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # We write no transactions; an open one of a stranger would hide everything behind it for as long as it likes.
        "isolation.level": "read_uncommitted",
        "enable.partition.eof": True,
        # A position that the log no longer holds must stop the reader, not move it in silence.
        "auto.offset.reset": "error",
        "fetch.error.backoff.ms": 100,
        # By default a reader slower than its fetcher costs itself a pause of a second, again and again.
        "fetch.queue.backoff.ms": 10,
    }
