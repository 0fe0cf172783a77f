"""Writing records at the very offsets and times that they had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as KafkaMessage

from esper.core.clock import SYSTEM_CLOCK, Clock, Deadline
from esper.core.errors import IntegrityError, OperationFailed
from esper.leyline import Record
from esper.oona._cluster import RECORD_BYTES_MAX, ClientConfig, Cluster, Position
from esper.oona._failures import error_of, no_broker, translate

#: Kafka's number for the producer's own time (KIP-32).
CREATE_TIME: Final = 1
_QUEUED_MAX: Final = 100_000
_POLL_SECONDS: Final = 0.1
_PROBE_SECONDS: Final = 1.0
_SETTLE_SECONDS: Final = 0.02
_REQUEST_SECONDS: Final = 10.0
#: A day: further ahead than any broker takes (`message.timestamp.after.max.ms` is an hour).
_REFUSED_AHEAD_MS: Final = 86_400_000


@contextmanager
def exact_producer(cluster: Cluster) -> Iterator[Producer]:
    """Return a producer for `ExactWriter`s; a block that raises sends nothing more."""
    producer = Producer(_config(cluster) | {"enable.idempotence": True, "linger.ms": 5})
    # One that learns of the leaders only when it needs one waits a second for each topic.
    what = "the log cannot be written"
    cluster.watch(what).retrying(what, lambda: producer.list_topics(timeout=_PROBE_SECONDS))
    try:
        yield producer
    except BaseException:
        producer.purge()
        raise


class ExactWriter:
    """Appends records to one partition from `next_offset` on; whatever gets another offset or time ends it.

    Nobody else may write the partition meanwhile. Idempotent (KIP-98): a retry neither repeats nor reorders.
    Writers of several partitions share one producer (`exact_producer`), in one thread.
    """

    def __init__(
        self,
        cluster: Cluster,
        producer: Producer,
        place: Position,
        next_offset: int,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._cluster = cluster
        self._producer = producer
        self._topic, self._partition = place
        self._sent = self._acknowledged = next_offset
        self._failure: OperationFailed | IntegrityError | None = None
        self._clock = clock

    @property
    def next_offset(self) -> int:
        """The offset that the next record gets."""
        return self._sent

    def write(self, record: Record) -> None:
        """Submit the next record with its key, value, headers and time; returns before it is acknowledged.

        Raises:
            IntegrityError: an earlier one got another offset or time than it had.
            OperationFailed: the broker refused an earlier one.
        """
        assert record.offset == self._sent, f"{record.offset} is written where {self._sent} is next"
        self._submit(record.key, record.value, record.headers, record.append_time_ms)

    def fill(self, end: int) -> None:
        """Submit empty records up to before `end`: what stood there is gone, and these are to be deleted."""
        while self._sent < end:
            self._submit(None, None, (), 1)

    def flush(self) -> None:
        """Return when everything is acknowledged; raises as `write`.

        Raises:
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
        """
        seconds = self._cluster.settings.broker_retry_seconds
        reached, deadline = self._acknowledged, Deadline(seconds, clock=self._clock)
        while self._acknowledged < self._sent:  # ends with the queue, or when nothing moves
            self._producer.poll(_POLL_SECONDS)
            self._raise_failure()
            if self._acknowledged > reached:
                reached, deadline = self._acknowledged, Deadline(seconds, clock=self._clock)
            if deadline.expired:
                raise no_broker(self._what, seconds=seconds, bootstrap=self._cluster.bootstrap)

    def skip(self, end: int, marker: GapMarker) -> None:
        """Leave every offset up to before `end` without a record; raises as `flush` and `GapMarker.leave`."""
        self.flush()
        while self._sent < end:
            marker.leave((self._topic, self._partition), self._sent)
            self._sent += 1
            self._acknowledged = self._sent

    @property
    def _what(self) -> str:
        return f"{self._topic}-{self._partition} cannot be written"

    def _submit(
        self, key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes | None], ...], time_ms: int
    ) -> None:
        self._raise_failure()
        while self._sent - self._acknowledged >= _QUEUED_MAX:
            self._producer.poll(_POLL_SECONDS)
            self._raise_failure()
        self._producer.produce(
            self._topic,
            value,
            key,
            partition=self._partition,
            on_delivery=self._on_delivery,
            timestamp=time_ms,
            headers=list(headers),
        )
        self._sent += 1
        self._producer.poll(0)

    def _on_delivery(self, error: KafkaError | None, message: KafkaMessage) -> None:
        if self._failure is not None:
            return
        if error is not None:
            self._failure = OperationFailed(self._what, cause=f"{error.name()}: {error.str()}")
            return
        kind, _ = message.timestamp()
        if message.offset() != self._acknowledged or kind != CREATE_TIME:
            self._failure = IntegrityError(
                self._what,
                cause=f"the record for offset {self._acknowledged} got offset {message.offset()} and time type {kind}: "
                "something else writes to the topic, or changed its settings",
                next_step="Stop what writes, then run `esper archive restore --again`, which begins anew",
            )
        self._acknowledged += 1

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


class GapMarker:
    """Takes up single offsets without leaving a record: by the markers of transactions that are aborted empty.

    Kafka's log keeps an offset for each marker (KIP-98), which no reader is shown. A transaction whose only record the
    broker refuses, for its time, leaves its marker and nothing else. Each takes two hundredths of a second.
    """

    def __init__(self, cluster: Cluster, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._cluster = cluster
        self._clock = clock
        self._producer: Producer | None = None

    def leave(self, place: Position, offset: int) -> None:
        """Take up `offset`, which must be the partition's end.

        Raises:
            OperationFailed: the broker did what it should not have done.
            BrokerUnavailable: it did not answer.
        """
        what = f"offset {offset} of {place[0]}-{place[1]} cannot be left without a record"
        with self._translated(what):
            producer = self._opened()
            producer.begin_transaction()
            ahead = self._clock.now_ns() // 1_000_000 + _REFUSED_AHEAD_MS
            producer.produce(place[0], None, None, place[1], timestamp=ahead)
            producer.flush(_REQUEST_SECONDS)
            producer.abort_transaction(_REQUEST_SECONDS)
        deadline = Deadline(_REQUEST_SECONDS, clock=self._clock)
        while (high := self._cluster.watermarks([place])[place][1]) <= offset:  # ends with the marker, or in time
            if deadline.expired:
                raise OperationFailed(what, cause="the marker of an aborted transaction did not come")
            self._clock.sleep(_SETTLE_SECONDS)
        if high != offset + 1:
            raise IntegrityError(
                what,
                cause=f"the partition ends at {high} after one marker",
                next_step="Stop what writes to the topic, then run `esper archive restore --again`",
            )

    def _opened(self) -> Producer:
        if self._producer is None:
            self._producer = Producer(_config(self._cluster) | {"transactional.id": "esper-archive-restore"})
            self._producer.init_transactions(_REQUEST_SECONDS * 3)
        return self._producer

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except KafkaException as exception:
            raise translate(error_of(exception), what) from exception


def _config(cluster: Cluster) -> ClientConfig:
    return {
        **cluster.config(),
        "acks": "all",
        "message.max.bytes": RECORD_BYTES_MAX,
        "queue.buffering.max.messages": 2 * _QUEUED_MAX,
        "queue.buffering.max.kbytes": 256 * 1024,
        "compression.type": "none",
        "message.timeout.ms": round(cluster.settings.broker_retry_seconds * 1000),
    }
