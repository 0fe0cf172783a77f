"""The peers: plain clients of the same broker, which believe everything and remember nothing.

They are written to be fast: acknowledgements are counted and not kept, records come by the hundred, and the fetcher
does not pause for a second when its queue is full, which is librdkafka's default and halves what a fast reader sees.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Final

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

#: Cheapest for librdkafka's Python client.
_BATCH: Final = 500
_KEY: Final = b"k" * 32
_FETCH_BACKOFF_MS: Final = 10

#: Key, value, headers, partition.
Sent = tuple[bytes, bytes, list[tuple[str, str | bytes | None]], int]
Place = tuple[str, int]


class BareProducer:
    """An idempotent producer with acks=all that serves its delivery reports itself."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._topic = topic
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True, "linger.ms": 0}
        )
        self._acknowledged = 0

    def publish(self, record: Sent) -> None:
        """Produce one record and wait for its acknowledgement."""
        self._produce(record)
        self._producer.flush()

    def stream(self, records: Sequence[Sent]) -> float:
        """Produce all, wait for the last acknowledgement, and return the records a second."""
        before = self._acknowledged
        began = time.perf_counter()
        for record in records:
            self._produce(record)
            self._producer.poll(0)
        self._producer.flush()
        seconds = time.perf_counter() - began
        if self._acknowledged - before != len(records):
            raise RuntimeError("the broker did not acknowledge every record of the bare producer")
        return len(records) / seconds

    def _produce(self, record: Sent) -> None:
        key, value, headers, partition = record
        while True:  # ends when the queue has room
            try:
                self._producer.produce(self._topic, value, key, partition, self._delivered, headers=headers)
            except BufferError:
                self._producer.poll(0.005)
            else:
                return

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        self._acknowledged += error is None


def read_with_hmac(bootstrap: str, ends: dict[Place, int]) -> float:
    """Read partitions up to their ends, compute one HMAC per value, and return the records a second.

    Counted from the first batch on, so that connecting is left out.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "bench",
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": _FETCH_BACKOFF_MS,
        }
    )
    consumer.assign([TopicPartition(*place, 0) for place in ends])
    left, digest, key = sum(ends.values()), hmac.digest, _KEY
    left -= len(consumer.consume(1, 10.0))
    total, began = left, time.perf_counter()
    while left > 0:  # ends with the last record
        for message in consumer.consume(_BATCH, 1.0):
            if message.error() is None:
                digest(key, message.value(), "sha256")
                left -= 1
    seconds = time.perf_counter() - began
    consumer.close()
    return total / seconds


def read_in_processes(bootstrap: str, ends: dict[Place, int], processes: int) -> float:
    """Do as `read_with_hmac` in several new processes, each with its share of partitions; their start counts."""
    places = sorted(ends, key=ends.__getitem__)
    shares = [{place: ends[place] for place in places[first::processes]} for first in range(processes)]
    began = time.perf_counter()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(read_with_hmac, [bootstrap] * processes, shares))
    return sum(ends.values()) / (time.perf_counter() - began)
