"""When the local broker is ready: it says who it is, finds its coordinators, and has appended a record.

A listening port proves little: a broker that was killed is fenced until its old session ends, and appends
nothing. So the probe commits one offset as a group of its own. That looks up the group's coordinator
(making the offsets topic where there is none) and appends a record to the offsets topic, and it leaves no
topic behind that anybody would have to know.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.oona.broker._ports import answers

_GROUP = "esper.readiness"
_OFFSETS_TOPIC = "__consumer_offsets"
_POLL_SECONDS = 0.05
#: Long enough for a busy broker's answer, short enough to notice between two tries that the process died.
_REQUEST_SECONDS = 2.0


def wait_until_ready(port: int, cluster_id: str, *, deadline: Deadline, check: Callable[[], None]) -> bool:
    """Return whether the broker of cluster `cluster_id` was ready on `port` before the deadline.

    `check` is called between the tries and raises when waiting is of no use any more.
    """
    steps: list[Callable[[], bool]] = [
        lambda: answers(port),
        lambda: _is_cluster(port, cluster_id),
        lambda: _appends(port),
    ]
    for step in steps:
        while not step():
            check()
            if deadline.expired:
                return False
            SYSTEM_CLOCK.sleep(_POLL_SECONDS)
    return True


def _client(port: int) -> dict[str, str | int | float | bool]:
    return {
        "bootstrap.servers": f"127.0.0.1:{port}",
        "reconnect.backoff.max.ms": 200,
        "log_level": 0,  # Refused connections are what waiting looks like; they are no news on stderr.
    }


def _is_cluster(port: int, cluster_id: str) -> bool:
    """Whether a broker answers with metadata, and as this home's cluster rather than a stranger on the port."""
    try:
        metadata = AdminClient(_client(port)).list_topics(timeout=_REQUEST_SECONDS)
    except KafkaException:
        return False
    return bool(metadata.brokers) and metadata.cluster_id == cluster_id


def _appends(port: int) -> bool:
    """Whether a group's coordinator is found and has appended a committed offset to its log."""
    group: dict[str, str | int | float | bool] = {
        "group.id": _GROUP,
        "enable.auto.commit": False,
        "socket.timeout.ms": int(_REQUEST_SECONDS * 1000),
    }
    with closing(Consumer(_client(port) | group)) as consumer:
        try:
            committed = consumer.commit(offsets=[TopicPartition(_OFFSETS_TOPIC, 0, 0)], asynchronous=False)
        except KafkaException:
            return False
    return all(partition.error is None or partition.error.code() == KafkaError.NO_ERROR for partition in committed)
