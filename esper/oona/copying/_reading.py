"""Reading a partition as Kafka holds it: nothing is judged, and what is not there is seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, Self

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from esper.core.errors import NotReadyError
from esper.leyline import Record
from esper.oona._cluster import Cluster, Position
from esper.oona._events import headers_of
from esper.oona._failures import END_OF_PARTITION, ends_consumer, translate
from esper.oona.reading._reader import reader_config

_BATCH: Final = 500
_POLL_SECONDS: Final = 0.5
_PROBE_SECONDS: Final = 1.0
#: A broker that is there and sends nothing for so long will not send what is missing.
_SILENT_POLLS_MAX: Final = 60


class RawRecord(NamedTuple):
    """One record with what Kafka says beside it."""

    record: Record
    #: 1: the producer's time, 2: the broker's (KIP-32).
    timestamp_type: int
    #: Epoch of the leader that took it (KIP-101); None where the broker does not say.
    leader_epoch: int | None
    #: False where a header's name is not UTF-8: the client cannot hand out such headers, none of them.
    headers_known: bool = True


class RawReader:
    """Reads ranges of partitions, one after the other; one thread at a time."""

    def __init__(self, cluster: Cluster) -> None:
        """Connect; raises BrokerUnavailable when no broker answered for `settings.broker_retry_seconds`."""
        self._cluster = cluster
        self._what = "the log cannot be read"
        self._watch = cluster.watch(self._what)
        self._consumer = KafkaConsumer(
            reader_config(cluster)
            # What is to be read is there. A fetch that waited for more would keep the next partition waiting.
            | {"fetch.wait.max.ms": 10, "error_cb": self._watch.on_error}
        )
        # One that learns of the leaders only when it needs one waits a second for each topic.
        self._watch.retrying(self._what, lambda: self._consumer.list_topics(timeout=_PROBE_SECONDS))

    def read(self, place: Position, start: int, end: int) -> Iterator[RawRecord]:
        """Yield the records from `start` to before `end`, which the partition must have reached.

        Offsets that hold no record are passed over: transaction markers, and what compaction took away.

        Raises:
            IntegrityError: the log does not hold `start`.
            NotReadyError: the broker is there but does not send what it says that it holds.
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
        """
        if start >= end:
            return
        self._consumer.assign([TopicPartition(*place, start)])
        silent, position = 0, start
        while position < end:  # ends with the range, or when the broker stays silent
            self._watch.check(self._answers)
            first = self._consumer.poll(_POLL_SECONDS)
            messages = [] if first is None else [first, *self._consumer.consume(_BATCH, 0)]
            silent = 0 if messages else silent + 1
            if silent > _SILENT_POLLS_MAX:
                raise _silence(place)
            for message in messages:
                offset = self._offset_of(message)
                if offset is None:
                    continue
                if message.error() is not None:
                    position = max(position, offset)
                    continue
                position = offset + 1
                if offset < end:
                    yield _raw(message)
        self._consumer.unassign()

    def close(self) -> None:
        """Release the connections."""
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _offset_of(self, message: KafkaMessage) -> int | None:
        """Return where a record or the partition's end stands; None for an error that passes."""
        error = message.error()
        if error is not None and error.code() != END_OF_PARTITION:
            if ends_consumer(error):
                raise translate(error, self._what)
            self._watch.on_error(error)
            return None
        offset = message.offset()
        assert offset is not None, "a record and an end of partition have an offset"
        return int(offset)

    def _answers(self) -> bool:
        try:
            self._consumer.list_topics(timeout=_PROBE_SECONDS)
        except KafkaException:
            return False
        return True


def _raw(message: KafkaMessage) -> RawRecord:
    headers = headers_of(message)  # Asked for once: what a second call gives is undefined.
    kind, time_ms = message.timestamp()
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None, "a record has a topic"
    assert partition is not None, "a record has a partition"
    assert offset is not None, "a record has an offset"
    record = Record(topic, partition, offset, message.key(), message.value(), headers or (), time_ms)
    return RawRecord(record, kind, message.leader_epoch(), headers is not None)


def _silence(place: Position) -> NotReadyError:
    return NotReadyError(
        f"{place[0]}-{place[1]} cannot be read to its end",
        cause=f"the broker sent nothing more for {_SILENT_POLLS_MAX * _POLL_SECONDS:.0f} s",
        next_step="Try again; the broker's log says more",
    )
