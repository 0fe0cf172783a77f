"""The queue between a publisher and the broker: it slows its callers, drops nothing, and keeps room for alarms."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from esper.core.clock import SYSTEM_CLOCK, Clock, Deadline
from esper.core.errors import BrokerUnavailable, EsperError
from esper.oona._cluster import RECORD_BYTES_MAX, ClientConfig, Cluster, Position

#: Records that may wait for their acknowledgement; beyond, whoever submits is slowed.
QUEUE_RECORDS_MAX: Final = 100_000
#: Room above it that only emergency signals use: they wait behind no backlog.
_EMERGENCY_RECORDS: Final = 1_000
_QUEUE_KIBIBYTES_MAX: Final = 256 * 1024
_BACKPRESSURE_SECONDS: Final = 0.005
#: How long the delivery thread waits for a report before it looks whether it should end.
_POLL_SECONDS: Final = 0.05
_WARM_UP_SECONDS: Final = 1.0
#: From this backlog on, whoever submits serves the delivery reports himself, once every so many records.
_SERVED_FROM_RECORDS: Final = 8
_SERVED_EVERY_RECORDS: Final = 16
#: For so long afterwards the delivery thread stands aside.
_ASIDE_SECONDS: Final = 0.002

Headers = list[tuple[str, str | bytes | None]]
OnDelivery = Callable[[KafkaError | None, Message], None]


class SendQueue:
    """librdkafka's idempotent producer with a thread that serves its delivery reports.

    The client takes and gives back the interpreter for each report. A thread that submits without pause gives it up
    to another one only after 5 ms, so that it had better serve the reports of its backlog itself (`serve`). One
    thread serves at a time: the reports of a partition are heard in their order.

    `check` raises when nothing may be sent any more; `give_up` hears that the queue stayed full for too long and
    returns what is to be raised; `on_tick` runs in the delivery thread after each look for reports and must
    neither block nor raise.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        name: str,
        clock: Clock,
        check: Callable[[], None],
        give_up: Callable[[EsperError], EsperError],
        on_error: Callable[[KafkaError], None],
        on_tick: Callable[[], None],
    ) -> None:
        self.waits = 0
        self._clock = clock
        self._check = check
        self._give_up = give_up
        self._on_tick = on_tick
        self._retry_seconds = cluster.settings.broker_retry_seconds
        self._records_max = QUEUE_RECORDS_MAX
        self._closing = threading.Event()
        self._serving = threading.Lock()
        self._unserved = 0
        #: Held by whoever flushes, who would wait in vain for a lock that the delivery thread takes again and again.
        self._flushing = threading.Lock()
        self._aside_until = 0.0
        self._producer = Producer(_producer_config(cluster) | {"error_cb": on_error})
        self._deliveries = threading.Thread(target=self._serve_deliveries, name=name, daemon=True)

    def start(self) -> None:
        """Begin to serve delivery reports."""
        self._deliveries.start()

    @property
    def backlog_records(self) -> int:
        """How many records wait for their acknowledgement."""
        return len(self._producer)

    @property
    def has_room(self) -> bool:
        """Whether a record would be taken at once."""
        return len(self._producer) < self._records_max

    def await_room(self, what: str) -> None:
        """Wait while the queue is full: that is backpressure, no failure.

        Raises:
            BrokerUnavailable: it stayed full for `settings.broker_retry_seconds`.
        """
        if len(self._producer) < self._records_max:
            return
        deadline = Deadline(self._retry_seconds, clock=self._clock)
        while len(self._producer) >= self._records_max:  # ends with room, by death, or at the deadline
            self._wait_once(deadline, what)

    def put(
        self,
        place: Position,
        key: str,
        value: bytes,
        headers: Headers,
        on_delivery: OnDelivery,
        what: str,
        *,
        patient: bool = True,
    ) -> None:
        """Enqueue one record; wait while its bytes find no room.

        Raises:
            BufferError: they found none and the caller is not patient; the delivery thread must not be.
            BrokerUnavailable: the queue stayed full for `settings.broker_retry_seconds`.
            KafkaException: librdkafka refused the record; nothing was enqueued.
        """
        deadline: Deadline | None = None
        while True:  # ends when the queue takes the record, by death, or at the deadline
            try:
                self._producer.produce(
                    place[0], value, key.encode(), place[1], on_delivery=on_delivery, headers=headers
                )
            except BufferError:
                if not patient:
                    raise
                deadline = deadline or Deadline(self._retry_seconds, clock=self._clock)
                self._wait_once(deadline, what)
            else:
                return

    def serve(self) -> None:
        """Serve the delivery reports that are there, if the backlog is long and it is time; called after each `put`."""
        self._unserved += 1  # Two threads may lose a count between them, which serves a little later.
        if self._unserved < _SERVED_EVERY_RECORDS or len(self._producer) < _SERVED_FROM_RECORDS:
            return
        self._unserved = 0
        self._aside_until = SYSTEM_CLOCK.monotonic() + _ASIDE_SECONDS
        if self._serving.acquire(blocking=False):
            try:
                self._producer.poll(0)
            finally:
                self._serving.release()

    def flush(self, deadline: Deadline) -> None:
        """Wait until nothing waits for its acknowledgement, a second at most and not beyond the deadline."""
        with self._flushing, self._serving:
            self._producer.flush(min(deadline.remaining_seconds, 1.0))

    def discard(self) -> None:
        """Give up what waits, so that nobody waits in vain; its delivery reports say so."""
        self._producer.purge(blocking=False)

    def close(self) -> None:
        """End the delivery thread and give up what still waits."""
        self._closing.set()
        self._deliveries.join()
        self._producer.purge()
        self._producer.flush(0.0)

    def _wait_once(self, deadline: Deadline, what: str) -> None:
        self._check()
        if deadline.expired:
            cause = f"the queue stayed full for {self._retry_seconds:g} seconds"
            raise self._give_up(BrokerUnavailable(what, cause=cause, next_step="Is the broker up?"))
        self.waits += 1
        self._clock.sleep(_BACKPRESSURE_SECONDS)

    def _serve_deliveries(self) -> None:
        # Asked something, librdkafka connects at once; left alone, its first producer id takes half a second.
        with suppress(KafkaException):
            self._producer.list_topics(timeout=_WARM_UP_SECONDS)
        while not self._closing.is_set():
            if self._flushing.locked() or SYSTEM_CLOCK.monotonic() < self._aside_until:
                self._closing.wait(_ASIDE_SECONDS)
            else:
                with self._serving:
                    self._producer.poll(_POLL_SECONDS)
            self._on_tick()


def _producer_config(cluster: Cluster) -> ClientConfig:
    timeout_ms = int(cluster.settings.broker_retry_seconds * 1000)
    return {
        **cluster.config(),
        "enable.idempotence": True,
        "acks": "all",
        # A broker that knows nothing of a producer on a partition takes whatever sequence comes first (KIP-360). With
        # more on their way, one that is refused while a leader settles is overtaken, and its retry then counts as
        # a duplicate: acknowledged, and not in the log.
        "max.in.flight.requests.per.connection": 1,
        "linger.ms": 0,
        "message.timeout.ms": timeout_ms,
        "request.timeout.ms": min(10_000, timeout_ms),
        "message.max.bytes": RECORD_BYTES_MAX,
        "queue.buffering.max.messages": QUEUE_RECORDS_MAX + _EMERGENCY_RECORDS,
        "queue.buffering.max.kbytes": _QUEUE_KIBIBYTES_MAX,
        # Partitions are given, never chosen here; this only keeps a forgotten one from being random.
        "partitioner": "murmur2",
    }
