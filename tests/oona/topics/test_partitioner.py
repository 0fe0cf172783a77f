"""The partitioner is Kafka's own."""

from __future__ import annotations

import random
import threading

import pytest
from confluent_kafka import Message, Producer

from esper.core.ids import new_event_id
from esper.oona import Cluster, Fabric, murmur2, partition_for
from esper.oona._kafka_admin import NewTopic

#: From the test suite of Kafka's Java client (UtilsTest.testMurmur2), as signed 32-bit integers.
JAVA_VECTORS = {
    "21": -973932308,
    "foobar": -790332482,
    "a-little-bit-long-string": -985981536,
    "a-little-bit-longer-string": -1486304829,
    "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    "abc": 479470107,
}


@pytest.mark.parametrize(("key", "expected"), JAVA_VECTORS.items())
def test_murmur2_gives_java_s_vectors(key: str, expected: int) -> None:
    """Equal keys hash alike in every client: compare with the vectors of the Java client's own tests."""
    assert murmur2(key.encode()) == expected % 2**32


def test_partitions_are_those_of_librdkafka_s_murmur2(fabric: Fabric) -> None:
    """Our partition is where an independent client puts the key: produce 300 keys to a scratch topic and compare."""
    topic, partitions = f"scratch-{new_event_id()}", 8
    fabric.cluster.admin.create_topics([NewTopic(topic, num_partitions=partitions)])[topic].result(timeout=30)
    chooser = random.Random(7)  # noqa: S311 - keys for a test, nothing secret
    keys = {"".join(chooser.choices("abcdef0123456789-µé", k=chooser.randint(1, 40))) for _ in range(300)}
    found: dict[str, int] = {}
    done = threading.Event()

    def delivered(error: object, message: Message) -> None:
        key, partition = message.key(), message.partition()
        assert error is None
        assert isinstance(key, bytes)
        assert partition is not None
        found[key.decode()] = partition
        if len(found) == len(keys):
            done.set()

    producer = Producer({"bootstrap.servers": fabric.bootstrap, "partitioner": "murmur2_random", "linger.ms": 5})
    for key in keys:
        producer.produce(topic, b"x", key, on_delivery=delivered)
    producer.flush(30)
    assert done.is_set()
    assert found == {key: partition_for(key, partitions) for key in keys}
    assert set(found.values()) == set(range(partitions)), "300 keys reach every partition"


def test_fabric_uses_the_partition_count_of_the_topic(fabric: Fabric) -> None:
    """A run's events of all run-scoped topics share a partition number: compare across the topics."""
    scoped = [spec.name for spec in fabric.topics if spec.key == "run_id"]
    for number in range(20):
        run_id = f"run-{number}"
        assert {fabric.partition_of(topic, run_id) for topic in scoped} == {partition_for(run_id, 8)}
    assert isinstance(fabric.cluster, Cluster)
