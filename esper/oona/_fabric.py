"""Everything a process needs to talk: settings, keys, topics and the cluster, opened and checked once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Self
from weakref import WeakSet

from google.protobuf.message import Message

from esper.core.errors import NotReadyError
from esper.core.home import Home, mark_ready
from esper.core.settings import Settings
from esper.leyline import KeyRing
from esper.oona._cluster import Cluster, Position
from esper.oona._consumer import Consumer
from esper.oona._events import Handler
from esper.oona._partitioner import partition_for
from esper.oona._publisher import Publisher
from esper.oona._reader import Reader, Start
from esper.oona._topics import TopicCatalog


class Fabric:
    """A process's way to the log. Safe to share between threads; what it opens is closed with it."""

    def __init__(self, *, member: str, cluster: Cluster, home: Home, keyring: KeyRing, topics: TopicCatalog) -> None:
        self.member = member
        self.cluster = cluster
        self.home = home
        self.keyring = keyring
        self.topics = topics
        # Weak, so that a long-lived process may open readers by the thousand.
        self._opened: WeakSet[Publisher | Consumer | Reader] = WeakSet()

    @classmethod
    def open(cls, settings: Settings, *, member: str) -> Fabric:
        """Return the fabric of the system that `settings` names; `member` names this process.

        Raises:
            BrokerUnavailable: no broker answered within `settings.connect_seconds`.
            NotReadyError: there is no home, or the cluster lacks a topic.
            SecretError: the signing secret is missing or not the home's.
            SettingsError: a topic file cannot be used.
        """
        home = Home.open(settings)
        topics = TopicCatalog.load(settings)
        keyring = home.keyring(settings)
        cluster = Cluster.open(settings, home=home, client_id=f"esper.{member}")
        _check_topics(cluster, topics)
        return cls(member=member, cluster=cluster, home=home, keyring=keyring, topics=topics)

    @property
    def settings(self) -> Settings:
        """Settings that the fabric was opened with."""
        return self.cluster.settings

    @property
    def bootstrap(self) -> str:
        """Address of the cluster, host:port[,host:port]."""
        return self.cluster.bootstrap

    def publisher(self, source: str) -> Publisher:
        """Return a new publisher that writes as `source`, with a producer id of its own."""
        publisher = Publisher(self.cluster, keyring=self.keyring, topics=self.topics, source=source)
        self._opened.add(publisher)
        return publisher

    def consumer(
        self,
        *,
        group: str,
        instance: str,
        topics: Sequence[str],
        handlers: Mapping[type[Message], Handler],
        publisher: Publisher,
        on_assign: Callable[[Sequence[Position]], None] | None = None,
        gather_seconds: float = 0.0,
    ) -> Consumer:
        """Return member `instance` of `group`, which calls `handlers` for new events of `topics`.

        `instance` must be stable and used by one process at a time. `publisher` writes the dead letters.
        `on_assign` is called with each set of partitions gained, before any of their events is handled.
        A member that need not know at once lets the broker gather records for up to `gather_seconds`.
        """
        consumer = Consumer(
            self,
            group=group,
            instance=instance,
            topics=topics,
            handlers=handlers,
            publisher=publisher,
            on_assign=on_assign,
            gather_seconds=gather_seconds,
        )
        self._opened.add(consumer)
        return consumer

    def reader(
        self,
        positions: Mapping[Position, Start],
        *,
        rejects: Publisher | None = None,
        gather_seconds: float = 0.0,
    ) -> Reader:
        """Return a reader of partitions from positions (an offset, "begin" or "end").

        Records that must not be believed are set aside through `rejects` where it is given. A reader that need
        not know at once lets the broker gather records for up to `gather_seconds`.
        """
        reader = Reader(self, positions, rejects=rejects, gather_seconds=gather_seconds)
        self._opened.add(reader)
        return reader

    def partition_of(self, topic: str, key: str) -> int:
        """Return the partition of `topic` that holds `key`, as Java's default partitioner gives it."""
        return partition_for(key, self.topics[topic].partitions)

    def announce_ready(self) -> None:
        """Let others see that this process's member does its work; a consumer does it when it has its partitions."""
        mark_ready(self.home, self.member)

    def close(self) -> None:
        """Close everything opened here, readers and consumers first: they may still write dead letters.

        Raises:
            BrokerUnavailable: a publisher had events that were never acknowledged; everything is closed all the same.
        """
        opened = sorted(self._opened, key=lambda client: isinstance(client, Publisher))
        self._opened.clear()
        with ExitStack() as stack:
            for client in reversed(opened):
                stack.callback(client.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_topics(cluster: Cluster, topics: TopicCatalog) -> None:
    """Refuse a cluster whose topics are not those of the files: a key would live in another partition."""
    present = cluster.metadata().topics
    missing = [spec.name for spec in topics if spec.name not in present]
    if missing:
        raise NotReadyError(
            f"the cluster at {cluster.bootstrap} lacks the topics {', '.join(missing)}",
            next_step="Run `esper topics apply`",
        )
    for spec in topics:
        found = len(present[spec.name].partitions)
        if found != spec.partitions:
            raise NotReadyError(
                f"topic {spec.name} cannot be used",
                cause=f"the cluster has it with {found} partitions, its file says {spec.partitions}",
                next_step="Point ESPER_KAFKA_BOOTSTRAP at another cluster or correct the topic file",
            )
