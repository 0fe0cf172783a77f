"""Appending events to the log: signed, chained, acknowledged, in order."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Self, cast

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Message as KafkaMessage
from google.protobuf.message import Message as ProtobufMessage

from esper.core.clock import SYSTEM_CLOCK, Clock, Deadline
from esper.core.errors import BrokerUnavailable, EsperError, IntegrityError, NotReadyError, UsageError
from esper.core.ids import derive_id, new_event_id, new_producer_id
from esper.leyline import (
    CLOCK_SKEW_MS_MAX,
    SIGNATURE_HEADER,
    TYPE_HEADER,
    VALUE_BYTES_MAX,
    Envelope,
    EventMessage,
    KeyRing,
    current_version,
    mac_of,
    short_name,
    type_of,
)
from esper.leyline import messages as ly
from esper.leyline.signing import KEY_ID_BYTES
from esper.oona._cluster import Cluster, Position
from esper.oona._failures import FATAL, error_of, translate
from esper.oona.emergency._state import alarm_for, emergency_signal
from esper.oona.publishing._chain import Chain
from esper.oona.publishing._line import PublisherLine, PublisherMetrics
from esper.oona.publishing._pending import Pending, Receipt, sampled_out
from esper.oona.publishing._queue import Headers, OnDelivery, SendQueue
from esper.oona.publishing._sampling import TelemetrySampler, dropped_report
from esper.oona.publishing._trace import TRACEPARENT_HEADER, trace_for
from esper.oona.topics._partitioner import partition_for
from esper.oona.topics._specs import TopicCatalog, TopicSpec

_logger = logging.getLogger("esper.oona.publisher")

#: librdkafka looks for expired records once a second; a caller waits that much longer than the record may.
_EXPIRY_SLACK_SECONDS: Final = 10.0
#: Under lasting pressure the number of dropped telemetry packets is published this often.
_REPORT_EVERY_SECONDS: Final = 1.0
_NANOSECONDS: Final = 1_000_000_000
_NANOSECONDS_PER_MS: Final = 1_000_000


def _never() -> bool:
    return False


class Publisher:
    """One life of one producer: idempotent, acks=all, every record signed and linked to the one before.

    Per (topic, partition) `sequence` counts from 1 without gaps and `previous_mac` holds the MAC of the
    record before, in the order in which the log holds them. A record that is not acknowledged within
    `settings.broker_retry_seconds` ends the publisher: what follows would leave a gap in its chain. The next
    publisher of its line says where the chain ended. Thread-safe; a full queue slows the caller and drops nothing
    but telemetry, whose dropped packets are counted and the count published.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        keyring: KeyRing,
        topics: TopicCatalog,
        line: PublisherLine,
        conservative: Callable[[], bool] = _never,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.source = line.source
        self.producer_id: str = new_producer_id(self.source)
        self._keyring = keyring
        self._topics = topics
        self._line = line
        self._conservative = conservative
        self._clock = clock
        self._tracing = cluster.settings.tracing
        self._retry_seconds = cluster.settings.broker_retry_seconds
        self._what = f"{self.source} cannot write to the log"
        self._chain = Chain()
        self._dead: EsperError | None = None
        self._failed_life = self._ended = self._closed = False
        self._submitted = self._acknowledged = self._failed = 0
        #: Class of a message -> its type's name and the topic that takes it from this source.
        self._routes: dict[type[EventMessage], tuple[str, TopicSpec]] = {}
        self._sampler = TelemetrySampler(begins_records=cluster.settings.telemetry_backlog_records)
        self._reported_at = clock.monotonic()
        self._order = threading.Lock()
        self._queue = SendQueue(
            cluster,
            name=f"publisher-{self.source}",
            clock=clock,
            check=self._raise_if_dead,
            give_up=self._die,
            on_error=self._on_error,
            on_tick=self._tick,
        )
        self._queue.start()

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

        Fills `message.meta` in place; an event_id that is given or already set is kept. Telemetry is not sampled:
        whoever waits slows himself. With CRITICAL priority the emergency signal is acknowledged first.

        Raises:
            BrokerUnavailable: not acknowledged within `settings.broker_retry_seconds`; the publisher is dead. Or
                the publish breaker is open.
            NotReadyError: this machine's clock is too far ahead of the broker's; the publisher is dead.
            UsageError: no topic carries the type, this source may not write it, the key is empty, it is too large.
        """
        spec = self._prepare(message, key, causation_id, correlation_id, event_id, priority)
        self._alarm(message, spec, wait=True)
        return self._send(message, spec).result()

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

        Events submitted one after the other reach their partition in that order. Telemetry (a topic with
        `truth: false`) below HIGH priority is sampled while the backlog is long: see `Pending.sampled_out`.
        """
        spec = self._prepare(message, key, causation_id, correlation_id, event_id, priority)
        if not spec.truth and priority < ly.MESSAGE_PRIORITY_HIGH and not self._keeps_telemetry():
            return sampled_out(message.meta.event_id, f"telemetry of {key} was not appended")
        self._alarm(message, spec, wait=False)
        return self._send(message, spec)

    def raise_emergency(
        self,
        level: ly.EmergencyLevel,
        reason: str,
        *,
        run_id: str = "",
        origin_event_id: str = "",
        attributes: Mapping[str, str] | None = None,
    ) -> Receipt:
        """Append an emergency signal ahead of every backlog and return its receipt.

        NOTICE says that what this member raised before is over. Raises as `publish`.
        """
        signal = emergency_signal(
            level,
            reason,
            origin=self._line.member,
            run_id=run_id,
            origin_event_id=origin_event_id,
            attributes=attributes,
        )
        return self.publish(signal, key=self.source, priority=ly.MESSAGE_PRIORITY_CRITICAL)

    def flush(self) -> None:
        """Wait until everything submitted is acknowledged.

        Raises:
            BrokerUnavailable: it was not, within `settings.broker_retry_seconds`; the publisher is dead.
        """
        deadline = Deadline(self._retry_seconds + _EXPIRY_SLACK_SECONDS, clock=self._clock)
        while self._queue.backlog_records and not deadline.expired and self._dead is None:
            self._queue.flush(deadline)
        self._raise_if_dead()
        if self._queue.backlog_records:
            cause = f"{self._queue.backlog_records} events are not acknowledged"
            raise self._die(BrokerUnavailable(self._what, cause=cause))

    def close(self) -> None:
        """Flush, then release the connections; closing twice does nothing.

        Raises:
            BrokerUnavailable: something submitted was not acknowledged.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self._dead is None:
                self._report_dropped(wait=True)
                self.flush()
        finally:
            with self._order:
                self._dead = self._dead or UsageError(self._what, cause="the publisher is closed")
            self._queue.close()
            self._end()
            self._line.closed(self.metrics())

    @property
    def backlog_records(self) -> int:
        """How many records wait for their acknowledgement."""
        return self._queue.backlog_records

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def metrics(self) -> PublisherMetrics:
        """Return a snapshot of the counters."""
        return PublisherMetrics(
            self._submitted, self._acknowledged, self._failed, self._queue.waits, self._sampler.dropped
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Before the queue ---------------------------------------------------------------------------------------

    def _prepare(
        self,
        message: EventMessage,
        key: str,
        causation_id: str,
        correlation_id: str,
        event_id: str | None,
        priority: ly.MessagePriority,
    ) -> TopicSpec:
        """Return the topic of a message, and fill everything of its meta that does not depend on the chain."""
        type_name, spec = self._routes.get(type(message)) or self._find_route(message)
        if not key:
            raise _without_key(type_name, spec)
        meta = message.meta
        meta.event_id = event_id or meta.event_id or new_event_id()
        meta.type = type_name
        meta.source = self.source
        meta.subject = key
        meta.schema_version = current_version(type_name)
        meta.correlation_id = correlation_id or key
        meta.causation_id = causation_id
        meta.producer_id = self.producer_id
        meta.priority = priority
        return spec

    def _find_route(self, message: EventMessage) -> tuple[str, TopicSpec]:
        type_name = type_of(message)
        route = (type_name, writable_topic(self._topics, type_name, source=self.source))
        self._routes[type(message)] = route
        return route

    def _keeps_telemetry(self) -> bool:
        if self._dead is not None:
            return True  # The caller is to be told of the death, which is no matter of sampling.
        if self._line.breaker_state() == ly.CIRCUIT_STATE_OPEN:
            return self._sampler.drop()
        return self._sampler.keeps(self._queue.backlog_records, conservative=self._conservative())

    def _alarm(self, message: EventMessage, spec: TopicSpec, *, wait: bool) -> None:
        """Submit the emergency signal that an event of CRITICAL priority calls for, before the event itself."""
        meta = message.meta
        if meta.priority != ly.MESSAGE_PRIORITY_CRITICAL or isinstance(message, ly.EmergencySignal):
            return
        signal = alarm_for(meta, origin=self._line.member, run_scoped=spec.key == "run_id")
        event_id = derive_id("emergency", meta.event_id)
        where = self._prepare(
            signal, self.source, meta.event_id, meta.correlation_id, event_id, ly.MESSAGE_PRIORITY_CRITICAL
        )
        pending = self._send(signal, where)
        if wait:
            pending.result()

    def _send(self, message: EventMessage, spec: TopicSpec) -> Pending:
        """Wait for room, unless it is an emergency; then link, sign and enqueue."""
        partition = partition_for(message.meta.subject, spec.partitions)
        if not isinstance(message, ly.EmergencySignal):
            self._queue.await_room(self._what)
        with self._order:
            self._raise_if_dead()
            pending = self._append(message, spec.name, partition)
        self._queue.serve()
        return pending

    def _append(self, message: EventMessage, topic: str, partition: int, *, patient: bool = True) -> Pending:
        """Link, serialise, sign and enqueue; the caller holds the lock that keeps the chain in order."""
        meta, place = message.meta, (topic, partition)
        key, type_name, event_id = meta.subject, meta.type, meta.event_id  # Each look at a meta costs; these are kept.
        last = self._chain.last(place)
        sequence, now_ns = last.sequence + 1, self._clock.now_ns()
        time = meta.time
        time.seconds, time.nanos = divmod(now_ns, _NANOSECONDS)
        meta.sequence = sequence
        meta.previous_mac = last.mac
        value = cast("ProtobufMessage", message).SerializeToString(deterministic=True)
        what = f"{short_name(type_name)} of {key} was not appended to {topic}"
        if len(value) > VALUE_BYTES_MAX:
            raise UsageError(
                what,
                cause=f"it has {len(value)} bytes, a record holds at most {VALUE_BYTES_MAX}",
                next_step="Put large content into the blob store and name its digest",
            )
        signature = self._keyring.sign(Envelope(topic, partition, key, type_name, value), source=self.source)
        self._line.admit(what)
        since, seconds_max = self._clock.monotonic(), self._retry_seconds + _EXPIRY_SLACK_SECONDS
        pending = Pending(event_id, what, seconds_max=seconds_max, since=since)
        # Not a closure, whose cells would make the collector's work for each record in flight three times as long.
        delivered = partial(self._on_delivery, pending, place, sequence, signature, now_ns // _NANOSECONDS_PER_MS)
        headers: Headers = [(SIGNATURE_HEADER, signature), (TYPE_HEADER, type_name)]
        if self._tracing:
            trace = trace_for(correlation_id=meta.correlation_id, event_id=event_id)
            headers.append((TRACEPARENT_HEADER, trace.header()))
        self._enqueue(place, key, value, headers, delivered, patient=patient)
        self._chain.append(place, sequence, mac_of(signature))
        self._submitted += 1
        return pending

    def _enqueue(
        self, place: Position, key: str, value: bytes, headers: Headers, delivered: OnDelivery, *, patient: bool
    ) -> None:
        try:
            self._queue.put(place, key, value, headers, delivered, self._what, patient=patient)
        except KafkaException as error:
            self._line.failed()
            raise translate(error_of(error), f"{self._what} {place[0]}") from error

    # After the queue; these run in the thread that serves deliveries ----------------------------------------

    def _on_delivery(
        self,
        pending: Pending,
        place: Position,
        sequence: int,
        signature: bytes,
        issued_ms: int,
        error: KafkaError | None,
        report: KafkaMessage,
    ) -> None:
        if error is not None:
            self._on_failure(pending, place[0], error)
        else:
            self._on_acknowledged(pending, place, sequence, signature, report, issued_ms)

    def _on_acknowledged(
        self, pending: Pending, place: Position, sequence: int, signature: bytes, report: KafkaMessage, issued_ms: int
    ) -> None:
        offset, append_time_ms = report.offset(), report.timestamp()[1]
        if offset is None:
            pending.settle(None, self._die(self._without_place(place)))
            return
        self._acknowledged += 1
        self._chain.acknowledge(place, sequence, mac_of(signature), offset)
        problem = self._unbelievable(place, offset, signature, issued_ms - append_time_ms)
        if problem is not None:
            pending.settle(None, self._die(problem))
            return
        self._line.succeeded()
        self._line.latency.observe(self._clock.monotonic() - pending.since)
        pending.settle(Receipt(place[0], place[1], offset, append_time_ms, pending.event_id), None)

    def _unbelievable(self, place: Position, offset: int, signature: bytes, ahead_ms: int) -> EsperError | None:
        """Return why nobody will believe a record although the broker took it."""
        if ahead_ms > CLOCK_SKEW_MS_MAX:
            return self._clock_ahead(ahead_ms)
        revocations = self._keyring.revocations
        if revocations and revocations.covers(key_id := signature[:KEY_ID_BYTES].hex(), *place, offset):
            return NotReadyError(
                self._what,
                cause=f"key {key_id} was revoked while events that it signed were on their way: nobody believes them",
                next_step="Publish them again: the next publisher signs with the present key",
            )
        return None

    def _without_place(self, place: Position) -> EsperError:
        return IntegrityError(
            self._what,
            cause=f"the broker calls an event for {place[0]}-{place[1]} a duplicate and does not say where it stands",
            next_step="Publish it again: the next publisher of this line goes on where the last known event stands",
        )

    def _clock_ahead(self, ahead_ms: int) -> EsperError:
        return NotReadyError(
            self._what,
            cause=f"this machine's clock is {ahead_ms / 1_000:.0f} s ahead of the broker's, so that nobody believes it",
            next_step="Set both clocks by the same time server",
        )

    def _on_failure(self, pending: Pending, topic: str, error: KafkaError) -> None:
        self._failed += 1
        pending.settle(None, self._die(translate(error, f"{self._what} {topic}")))

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal() or error.code() in FATAL:
            self._die(translate(error, self._what))

    def _tick(self) -> None:
        if self._dead is not None:
            if not self._ended:
                self._queue.discard()
                if not self._queue.backlog_records:
                    self._end()
        elif self._sampler.unreported:
            self._report_dropped(wait=False)

    def _report_dropped(self, *, wait: bool) -> None:
        """Publish how much telemetry was dropped, once the backlog is short again and at times before.

        The delivery thread never waits: whoever holds the lock may wait for a delivery that only it can serve.
        """
        count, now = self._sampler.unreported, self._clock.monotonic()
        due = wait or now - self._reported_at >= _REPORT_EVERY_SECONDS
        if not count or not (due or not self._sampler.begins(self._queue.backlog_records)):
            return
        closed = self._line.breaker_state() == ly.CIRCUIT_STATE_CLOSED
        if not closed or not self._queue.has_room or not self._order.acquire(blocking=wait):
            return
        try:
            report = dropped_report(count, source=self.source)
            spec = self._prepare(report, self.source, "", "", None, ly.MESSAGE_PRIORITY_NORMAL)
            self._append(report, spec.name, partition_for(self.source, spec.partitions), patient=wait)
            self._sampler.reported(count)
            self._reported_at = now
        except (EsperError, BufferError) as error:
            _logger.debug("%d dropped telemetry packets are not reported yet: %s", count, error)
        finally:
            self._order.release()

    # Its end ------------------------------------------------------------------------------------------------

    def _die(self, failure: EsperError) -> EsperError:
        """End this publisher; the first failure is the one that every later call reports."""
        if self._dead is None:
            _logger.warning("%s", failure)
            self._failed_life = True
            self._line.dying()
            self._line.failed()
            self._dead = failure
        return self._dead

    def _end(self) -> None:
        """Tell the line where the chain of a life that failed ended, once every record has its outcome."""
        if self._failed_life and not self._ended:
            self._ended = True
            self._line.ended(self.producer_id, self._chain.acknowledged(), str(self._dead))

    def _raise_if_dead(self) -> None:
        if self._dead is not None:
            raise type(self._dead)(self._dead.what, cause=self._dead.cause, next_step=self._dead.next_step)


def writable_topic(topics: TopicCatalog, type_name: str, *, source: str) -> TopicSpec:
    """Return the topic that takes events of a type from `source`.

    Raises:
        UsageError: none does.
    """
    spec = topics.topic_of(type_name)
    if not spec.admits(source):
        raise UsageError(
            f"{source} may not write {short_name(type_name)}",
            cause=f"topic {spec.name} takes it from {', '.join(spec.writers)}",
            next_step=f"Add the source to topics/{spec.name}.yaml if it should",
        )
    return spec


def _without_key(type_name: str, spec: TopicSpec) -> UsageError:
    return UsageError(
        f"{short_name(type_name)} cannot be published",
        cause="its key is empty",
        next_step=f"Topic {spec.name} is keyed by {spec.key}",
    )
