"""Appending events to the log: signed, chained, acknowledged, in order."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self, cast

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from google.protobuf.message import Message as ProtobufMessage

from esper.core.clock import SYSTEM_CLOCK, Clock, Deadline
from esper.core.errors import BrokerUnavailable, EsperError, UsageError
from esper.core.ids import new_event_id, new_producer_id
from esper.leyline import (
    SIGNATURE_HEADER,
    TYPE_HEADER,
    VALUE_BYTES_MAX,
    Envelope,
    EventMessage,
    KeyRing,
    mac_of,
    short_name,
    type_of,
)
from esper.leyline import messages as ly
from esper.oona._cluster import RECORD_BYTES_MAX, ClientConfig, Cluster, Position
from esper.oona._failures import FATAL, error_of, translate
from esper.oona._partitioner import partition_for
from esper.oona._topics import TopicCatalog, TopicSpec

_logger = logging.getLogger("esper.oona.publisher")

SCHEMA_VERSION: Final = 1
#: How long the delivery thread waits for a report before it looks whether it should end.
_POLL_SECONDS: Final = 0.05
_WARM_UP_SECONDS: Final = 1.0
#: librdkafka looks for expired records once a second; a caller waits that much longer than the record may.
_EXPIRY_SLACK_SECONDS: Final = 10.0
#: Records and bytes that may wait for their acknowledgement; beyond, `submit` slows its caller.
_QUEUE_RECORDS_MAX: Final = 100_000
_QUEUE_KIBIBYTES_MAX: Final = 256 * 1024
_BACKPRESSURE_SECONDS: Final = 0.005


@dataclass(frozen=True)
class Receipt:
    """Where an acknowledged event stands in the log, and since when by the broker's clock."""

    topic: str
    partition: int
    offset: int
    append_time_ms: int
    event_id: str


@dataclass(frozen=True)
class PublisherMetrics:
    """Counters of one publisher since it began."""

    submitted: int = 0
    acknowledged: int = 0
    failed: int = 0
    backpressure_waits: int = 0


@dataclass(frozen=True)
class _Link:
    """The last record of this producer on one partition."""

    sequence: int = 0
    mac: bytes = b""


class Pending:
    """An event on its way: `result` waits for the broker's acknowledgement."""

    def __init__(self, event_id: str, what: str, *, seconds_max: float) -> None:
        self._event_id = event_id
        self._what = what
        self._seconds_max = seconds_max
        self._done = threading.Event()
        self._receipt: Receipt | None = None
        self._failure: EsperError | None = None

    @property
    def done(self) -> bool:
        """Whether the outcome is known."""
        return self._done.is_set()

    def result(self, timeout: float | None = None) -> Receipt:
        """Return the receipt; wait at most `timeout` seconds, by default as long as the record may take.

        Raises:
            BrokerUnavailable: not acknowledged in time; it may still reach the log if only `timeout` passed.
            EsperError: the broker refused it.
        """
        waited = self._seconds_max if timeout is None else timeout
        if not self._done.wait(waited):
            raise BrokerUnavailable(
                self._what, cause=f"no acknowledgement within {waited:g} seconds", next_step="Is the broker up?"
            )
        if self._failure is not None:
            raise self._failure
        assert self._receipt is not None, "a done event has a receipt or a failure"
        return self._receipt

    def settle(self, receipt: Receipt | None, failure: EsperError | None) -> None:
        """Make the outcome known; the publisher calls it once."""
        self._receipt, self._failure = receipt, failure
        self._done.set()


class Publisher:
    """One life of one producer: idempotent, acks=all, every record signed and linked to the one before.

    Per (topic, partition) `sequence` counts from 1 without gaps and `previous_mac` holds the MAC of the
    record before, in the order in which the log holds them. A record that is not acknowledged within
    `settings.broker_retry_seconds` ends the publisher: what follows would leave a gap in its chain.
    Thread-safe; a full queue slows the caller and drops nothing.
    """

    def __init__(
        self, cluster: Cluster, *, keyring: KeyRing, topics: TopicCatalog, source: str, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.source = source
        self.producer_id: str = new_producer_id(source)
        self._keyring = keyring
        self._topics = topics
        self._clock = clock
        self._retry_seconds = cluster.settings.broker_retry_seconds
        self._what = f"{source} cannot write to the log"
        self._links: dict[Position, _Link] = {}
        self._dead: EsperError | None = None
        self._submitted = self._acknowledged = self._failed = self._backpressure_waits = 0
        self._order = threading.Lock()
        self._closing = threading.Event()
        self._producer = Producer(_producer_config(cluster) | {"error_cb": self._on_error})
        self._deliveries = threading.Thread(target=self._serve_deliveries, name=f"publisher-{source}", daemon=True)
        self._deliveries.start()

    def publish(
        self,
        message: EventMessage,
        *,
        key: str,
        causation_id: str = "",
        correlation_id: str = "",
        event_id: str | None = None,
        priority: ly.MessagePriority = ly.MESSAGE_PRIORITY_NORMAL,
    ) -> Receipt:
        """Append `message` and return its receipt once the broker has acknowledged it.

        Fills `message.meta` in place; an event_id that is given or already set is kept.

        Raises:
            BrokerUnavailable: not acknowledged within `settings.broker_retry_seconds`; the publisher is dead.
            UsageError: no topic carries the type, this source may not write it, the key is empty, it is too large.
        """
        pending = self.submit(
            message,
            key=key,
            causation_id=causation_id,
            correlation_id=correlation_id,
            event_id=event_id,
            priority=priority,
        )
        return pending.result()

    def submit(
        self,
        message: EventMessage,
        *,
        key: str,
        causation_id: str = "",
        correlation_id: str = "",
        event_id: str | None = None,
        priority: ly.MessagePriority = ly.MESSAGE_PRIORITY_NORMAL,
    ) -> Pending:
        """Enqueue `message` as `publish` does, without waiting for its acknowledgement.

        Events submitted one after the other reach their partition in that order.
        """
        spec = self._topic_for(message, key)
        partition = partition_for(key, spec.partitions)
        meta = message.meta
        meta.event_id = event_id or meta.event_id or new_event_id()
        meta.type = type_of(message)
        meta.source = self.source
        meta.subject = key
        meta.schema_version = SCHEMA_VERSION
        meta.correlation_id = correlation_id or key
        meta.causation_id = causation_id
        meta.producer_id = self.producer_id
        meta.priority = priority
        with self._order:
            self._raise_if_dead()
            return self._append(message, spec.name, partition)

    def flush(self) -> None:
        """Wait until everything submitted is acknowledged.

        Raises:
            BrokerUnavailable: it was not, within `settings.broker_retry_seconds`; the publisher is dead.
        """
        deadline = Deadline(self._retry_seconds + _EXPIRY_SLACK_SECONDS, clock=self._clock)
        while len(self._producer) and not deadline.expired and self._dead is None:
            self._producer.flush(min(deadline.remaining_seconds, 1.0))
        self._raise_if_dead()
        if len(self._producer):
            raise BrokerUnavailable(self._what, cause=f"{len(self._producer)} events are not acknowledged")

    def close(self) -> None:
        """Flush, then release the connections; closing twice does nothing.

        Raises:
            BrokerUnavailable: something submitted was not acknowledged.
        """
        if self._closing.is_set():
            return
        try:
            if self._dead is None:
                self.flush()
        finally:
            with self._order:
                self._dead = self._dead or UsageError(self._what, cause="the publisher is closed")
            self._closing.set()
            self._deliveries.join()
            self._producer.purge()
            self._producer.flush(0.0)

    def metrics(self) -> PublisherMetrics:
        """Return a snapshot of the counters."""
        return PublisherMetrics(self._submitted, self._acknowledged, self._failed, self._backpressure_waits)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _topic_for(self, message: EventMessage, key: str) -> TopicSpec:
        type_name = type_of(message)
        spec = self._topics.topic_of(type_name)
        if not spec.admits(self.source):
            raise UsageError(
                f"{self.source} may not write {short_name(type_name)}",
                cause=f"topic {spec.name} takes it from {', '.join(spec.writers)}",
                next_step=f"Add the source to topics/{spec.name}.yaml if it should",
            )
        if not key:
            raise UsageError(
                f"{short_name(type_name)} cannot be published",
                cause="its key is empty",
                next_step=f"Topic {spec.name} is keyed by {spec.key}",
            )
        return spec

    def _append(self, message: EventMessage, topic: str, partition: int) -> Pending:
        """Link, serialise, sign and enqueue; the caller holds the lock that keeps the chain in order."""
        meta = message.meta
        place = (topic, partition)
        last = self._links.get(place, _Link())
        meta.time.FromNanoseconds(self._clock.now_ns())
        meta.sequence = last.sequence + 1
        meta.previous_mac = last.mac
        value = cast("ProtobufMessage", message).SerializeToString(deterministic=True)
        what = f"{short_name(meta.type)} of {meta.subject} was not appended to {topic}"
        if len(value) > VALUE_BYTES_MAX:
            raise UsageError(
                what,
                cause=f"it has {len(value)} bytes, a record holds at most {VALUE_BYTES_MAX}",
                next_step="Put large content into the blob store and name its digest",
            )
        signature = self._keyring.sign(Envelope(topic, partition, meta.subject, meta.type, value))
        pending = Pending(meta.event_id, what, seconds_max=self._retry_seconds + _EXPIRY_SLACK_SECONDS)
        self._enqueue(place, meta, value, signature, pending)
        self._links[place] = _Link(meta.sequence, mac_of(signature))
        self._submitted += 1
        return pending

    def _enqueue(self, place: Position, meta: ly.EventMeta, value: bytes, signature: bytes, pending: Pending) -> None:
        event_id, what = meta.event_id, f"{self._what} {place[0]}"

        def delivered(error: KafkaError | None, report: Message) -> None:
            self._on_delivery(pending, event_id, error, report)

        headers: list[tuple[str, str | bytes | None]] = [(SIGNATURE_HEADER, signature), (TYPE_HEADER, meta.type)]
        deadline = Deadline(self._retry_seconds, clock=self._clock)
        while True:  # ends when the queue takes the record, by death, or at the deadline
            try:
                self._producer.produce(
                    place[0], value, meta.subject.encode(), place[1], on_delivery=delivered, headers=headers
                )
            except BufferError as error:
                self._raise_if_dead()
                if deadline.expired:
                    cause = f"the queue stayed full for {self._retry_seconds:g} seconds"
                    raise self._die(BrokerUnavailable(what, cause=cause, next_step="Is the broker up?")) from error
                self._backpressure_waits += 1
                self._clock.sleep(_BACKPRESSURE_SECONDS)
            except KafkaException as error:
                raise translate(error_of(error), what) from error
            else:
                return

    def _on_delivery(self, pending: Pending, event_id: str, error: KafkaError | None, report: Message) -> None:
        """Settle one event; runs in the thread that serves deliveries."""
        topic, partition, offset = report.topic(), report.partition(), report.offset()
        if error is not None:
            self._failed += 1
            failure = self._die(translate(error, f"{self._what} {topic}"))
            pending.settle(None, failure)
            return
        assert topic is not None, "a delivered record has a topic"
        assert partition is not None, "a delivered record has a partition"
        assert offset is not None, "a delivered record has an offset"
        self._acknowledged += 1
        pending.settle(Receipt(topic, partition, offset, report.timestamp()[1], event_id), None)

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal() or error.code() in FATAL:
            self._die(translate(error, self._what))

    def _die(self, failure: EsperError) -> EsperError:
        """End this publisher; the first failure is the one that every later call reports."""
        if self._dead is None:
            _logger.warning("%s", failure)
            self._dead = failure
        return self._dead

    def _raise_if_dead(self) -> None:
        if self._dead is not None:
            raise type(self._dead)(self._dead.what, cause=self._dead.cause, next_step=self._dead.next_step)

    def _serve_deliveries(self) -> None:
        """Serve delivery reports until closed; a dead publisher's queue is emptied, so that nobody waits in vain."""
        # Asked something, librdkafka connects at once; left alone, its first producer id takes half a second.
        with suppress(KafkaException):
            self._producer.list_topics(timeout=_WARM_UP_SECONDS)
        purged = False
        while not self._closing.is_set():
            self._producer.poll(_POLL_SECONDS)
            if self._dead is not None and not purged:
                self._producer.purge(blocking=False)
                purged = True


def _producer_config(cluster: Cluster) -> ClientConfig:
    timeout_ms = int(cluster.settings.broker_retry_seconds * 1000)
    return {
        **cluster.config(),
        "enable.idempotence": True,
        "acks": "all",
        "linger.ms": 0,
        "message.timeout.ms": timeout_ms,
        "request.timeout.ms": min(10_000, timeout_ms),
        "message.max.bytes": RECORD_BYTES_MAX,
        "queue.buffering.max.messages": _QUEUE_RECORDS_MAX,
        "queue.buffering.max.kbytes": _QUEUE_KIBIBYTES_MAX,
        # Partitions are given, never chosen here; this only keeps a forgotten one from being random.
        "partitioner": "murmur2",
    }
