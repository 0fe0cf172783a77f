"""When the local broker is ready: it says who it is, finds its coordinators, and has appended a record.

A listening port proves little: a broker that was killed is fenced until its old session ends, and appends
nothing. So the probe commits one offset as a group of its own. That looks up the group's coordinator
(making the offsets topic where there is none) and appends a record to the offsets topic, and it leaves no
topic behind that anybody would have to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.oona.broker._ports import answers

#: Outside `esper.`, so that nobody takes its offset for a member's progress.
_GROUP = "readiness-of-esper"
_OFFSETS_TOPIC = "__consumer_offsets"
_POLL_SECONDS = 0.05
#: Long enough for a busy broker's answer, short enough to notice between two tries that the process died.
_REQUEST_SECONDS = 2.0


ClientSettings = Mapping[str, str | int | float | bool]


def wait_until_ready(
    port: int, cluster_id: str, *, client: ClientSettings, deadline: Deadline, check: Callable[[], None]
) -> bool:
    """Return whether the broker of cluster `cluster_id` was ready before the deadline.

    `port` is the one that must listen, `client` the librdkafka settings by which the broker is asked.
    `check` is called between the tries and raises when waiting is of no use any more.
    """
    steps: list[Callable[[], bool]] = [
        lambda: answers(port),
        lambda: _is_cluster(client, cluster_id),
        lambda: _appends(client),
    ]
    return wait_for(steps, deadline=deadline, check=check)


def wait_for(steps: Iterable[Callable[[], bool]], *, deadline: Deadline, check: Callable[[], None]) -> bool:
    """Return whether every step, one after the other, was true before the deadline; `check` as above."""
    for step in steps:
        while not step():
            check()
            if deadline.expired:
                return False
            SYSTEM_CLOCK.sleep(_POLL_SECONDS)
    return True


def plain_client(port: int) -> ClientSettings:
    """Return the settings of a client of a broker that asks for no login."""
    return {"bootstrap.servers": f"127.0.0.1:{port}"}


def quiet(client: ClientSettings) -> dict[str, str | int | float | bool]:
    """Return `client` as a probe: refused connections are what waiting looks like, they are no news on stderr."""
    return {**client, "reconnect.backoff.max.ms": 200, "log_level": 0}


def _is_cluster(client: ClientSettings, cluster_id: str) -> bool:
    """Whether a broker answers with metadata, and as this home's cluster rather than a stranger on the port."""
    try:
        metadata = AdminClient(quiet(client)).list_topics(timeout=_REQUEST_SECONDS)
    except KafkaException:
        return False
    return bool(metadata.brokers) and metadata.cluster_id == cluster_id


def _appends(client: ClientSettings) -> bool:
    """Whether a group's coordinator is found and has appended a committed offset to its log."""
    group: dict[str, str | int | float | bool] = {
        "group.id": _GROUP,
        "enable.auto.commit": False,
        "socket.timeout.ms": int(_REQUEST_SECONDS * 1000),
    }
    with closing(Consumer(quiet(client) | group)) as consumer:
        try:
            committed = consumer.commit(offsets=[TopicPartition(_OFFSETS_TOPIC, 0, 0)], asynchronous=False)
        except KafkaException:
            return False
    return all(partition.error is None or partition.error.code() == KafkaError.NO_ERROR for partition in committed)
