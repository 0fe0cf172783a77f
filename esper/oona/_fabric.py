"""Everything a process needs to talk: settings, keys, topics and the cluster, opened and checked once."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import reduce
from operator import add
from typing import Self
from weakref import WeakKeyDictionary, WeakSet

from google.protobuf.message import Message

from esper.core.clock import SYSTEM_CLOCK
from esper.core.errors import BrokerUnavailable, NotReadyError
from esper.core.home import Home, mark_ready
from esper.core.ids import derive_id
from esper.core.settings import Settings
from esper.leyline import KeyRing
from esper.leyline import messages as ly
from esper.oona._cluster import Cluster, Position
from esper.oona._events import Event, Handler
from esper.oona._latency import LatencyHistogram
from esper.oona.consuming._consumer import Consumer
from esper.oona.emergency._follower import EmergencyWatch
from esper.oona.housekeeping._metrics import FabricMetrics, GroupMetrics, SourceMetrics, combined
from esper.oona.keys._follower import KeyFollower
from esper.oona.publishing._line import PublisherLine
from esper.oona.publishing._publisher import Publisher
from esper.oona.publishing._trace import trace_of, tracing
from esper.oona.reading._reader import Reader, Start
from esper.oona.topics._acls import may_describe, principal_of, principals
from esper.oona.topics._partitioner import partition_for
from esper.oona.topics._specs import TopicCatalog

_logger = logging.getLogger("esper.oona.fabric")


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
        #: Authentic events that readers refused, by reason.
        self.refused: Counter[str] = Counter()
        self.key_follower = KeyFollower(self)
        self._lines: dict[str, PublisherLine] = {}
        self._handling: dict[str, LatencyHistogram] = {}
        self._consumers: WeakKeyDictionary[Consumer, str] = WeakKeyDictionary()
        self._emergencies: EmergencyWatch | None = None
        self._was_conservative = False
        self._lock = threading.Lock()

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
        principal = principal_of(member, principals(topics))
        cluster = Cluster.open(settings, home=home, client_id=f"esper.{member}", principal=principal)
        _check_topics(cluster, topics)
        fabric = cls(member=member, cluster=cluster, home=home, keyring=keyring, topics=topics)
        fabric.key_follower.catch_up()
        fabric.key_follower.start()
        return fabric

    @property
    def settings(self) -> Settings:
        """Settings that the fabric was opened with."""
        return self.cluster.settings

    @property
    def bootstrap(self) -> str:
        """Address of the cluster, host:port[,host:port]."""
        return self.cluster.bootstrap

    def publisher(self, source: str) -> Publisher:
        """Return a new publisher that writes as `source`, with a producer id of its own.

        Where an earlier one of this member and source ended in failure, the new one opens with `ProducerStarted`,
        which says what that one had acknowledged, and which is the probe of an open publish breaker.

        Raises:
            BrokerUnavailable: the log cannot be written, after an earlier publisher failed.
        """
        publisher = Publisher(
            self.cluster.as_principal(source),
            keyring=self.keyring,
            topics=self.topics,
            line=self._line(source),
            conservative=self._spares_itself,
        )
        self._opened.add(publisher)
        self._tell_endings(publisher)
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
        on_emergency: Handler | None = None,
    ) -> Consumer:
        """Return member `instance` of `group`, which calls `handlers` for new events of `topics`.

        `instance` must be stable and used by one process at a time. `publisher` writes the dead letters.
        `on_assign` is called with each set of partitions gained, before any of their events is handled.
        A member that need not know at once lets the broker gather records for up to `gather_seconds`.
        `on_emergency` is called in the thread that polls with each emergency signal, before any record that is
        taken after the signal was read, and at the start with those in force; one that raises ends the consumer.
        """
        latency = self._latency_of(group)
        consumer = Consumer(
            self,
            group=group,
            instance=instance,
            topics=topics,
            handlers={cls: self._observed(handler, latency) for cls, handler in handlers.items()},
            publisher=publisher,
            on_assign=on_assign,
            gather_seconds=gather_seconds,
            hear_first=self.emergencies.inbox(on_emergency).hear,
        )
        self._opened.add(consumer)
        self._consumers[consumer] = group
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

    @property
    def emergencies(self) -> EmergencyWatch:
        """The watch over the topic `emergency`, begun at first use."""
        with self._lock:
            if self._emergencies is None:
                self._emergencies = EmergencyWatch(self)
            return self._emergencies

    def conservative(self) -> tuple[str, ...]:
        """Return why the fabric is in conservative mode now, in words; empty when it is not.

        It then sheds telemetry and nothing else. The mode is a function of what is so now (backlogs, breakers,
        emergencies in force), so that it ends by itself with its last cause.
        """
        causes = [*self._alarms()]
        limit = self.settings.telemetry_backlog_records
        backlogs = {one.source: one.backlog_records for one in self._publishers() if not one.closed}
        causes += [f"backlog of {source}: {count} records" for source, count in backlogs.items() if count >= limit]
        if bool(causes) != self._was_conservative:
            self._was_conservative = bool(causes)
            _logger.warning("conservative mode: %s", "; ".join(causes) or "ended")
        return tuple(causes)

    def metrics(self) -> FabricMetrics:
        """Return a snapshot of everything that this process's fabric counts."""
        with self._lock:
            lines, handling, watch = dict(self._lines), dict(self._handling), self._emergencies
        consumers = list(self._consumers.items())
        return FabricMetrics(
            sources={source: self._source_metrics(line) for source, line in lines.items()},
            groups={
                group: GroupMetrics(combined(one.metrics() for one, its in consumers if its == group), latency)
                for group, latency in handling.items()
            },
            refused=dict(self.refused),
            conservative=self.conservative(),
            emergency_level=watch.level() if watch else ly.EMERGENCY_LEVEL_UNSPECIFIED,
            emergency_signals=watch.signals if watch else 0,
        )

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
            stack.callback(self.key_follower.close)
            for client in reversed(opened):
                stack.callback(client.close)
            if self._emergencies is not None:
                stack.callback(self._emergencies.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _line(self, source: str) -> PublisherLine:
        with self._lock:
            if source not in self._lines:
                folder = self.home.members
                line = PublisherLine(member=self.member, source=source, folder=folder, settings=self.settings)
                self._lines[source] = line
            return self._lines[source]

    def _tell_endings(self, publisher: Publisher) -> None:
        """Open a successor with where its predecessors' chains ended."""
        line = self._line(publisher.source)
        try:
            for ending in line.untold():
                event_id = derive_id("producer-started", ending.predecessor_id)
                publisher.publish(ending, key=ending.predecessor_id, event_id=event_id)
                line.told(ending)
        except BrokerUnavailable:
            with suppress(BrokerUnavailable):
                publisher.close()
            raise

    def _latency_of(self, group: str) -> LatencyHistogram:
        with self._lock:
            return self._handling.setdefault(group, LatencyHistogram())

    def _observed(self, handler: Handler, latency: LatencyHistogram) -> Handler:
        """Return a handler that is timed, and whose events belong to the trace of the event that it handles."""

        def timed(event: Event) -> None:
            began = SYSTEM_CLOCK.monotonic()
            try:
                handler(event)
            finally:
                latency.observe(SYSTEM_CLOCK.monotonic() - began)

        def traced(event: Event) -> None:
            with tracing(trace_of(event.record)):
                timed(event)

        return traced if self.settings.tracing else timed

    def _publishers(self) -> list[Publisher]:
        return [client for client in list(self._opened) if isinstance(client, Publisher)]

    def _source_metrics(self, line: PublisherLine) -> SourceMetrics:
        alive = [one for one in self._publishers() if one.source == line.source and not one.closed]
        return SourceMetrics(
            counters=reduce(add, (one.metrics() for one in alive), line.closed_lives),
            backlog_records=sum(one.backlog_records for one in alive),
            breaker=line.breaker_state(),
            latency=line.latency,
        )

    def _alarms(self) -> list[str]:
        """Return the causes of conservative mode that lie outside one publisher's own backlog."""
        watch = self._emergencies
        causes = []
        if watch is not None and watch.conservative():
            causes.append(f"emergency of level {ly.EmergencyLevel.Name(watch.level())}")
        for line in list(self._lines.values()):
            state = line.breaker_state()
            if state != ly.CIRCUIT_STATE_CLOSED:
                causes.append(f"publish breaker of {line.source}: {ly.CircuitBreakerState.Name(state)}")
        return causes

    def _spares_itself(self) -> bool:
        return bool(self._alarms())


def _check_topics(cluster: Cluster, topics: TopicCatalog) -> None:
    """Refuse a cluster whose topics are not those of the files: a key would live in another partition."""
    present = cluster.metadata().topics
    who = cluster.principal
    # A secure broker does not tell a principal of topics that are none of its business.
    shown = [spec for spec in topics if who is None or may_describe(spec, who)]
    missing = [spec.name for spec in shown if spec.name not in present]
    if missing:
        raise NotReadyError(
            f"the cluster at {cluster.bootstrap} lacks the topics {', '.join(missing)}",
            next_step="Run `esper topics apply`",
        )
    for spec in shown:
        found = len(present[spec.name].partitions)
        if found != spec.partitions:
            raise NotReadyError(
                f"topic {spec.name} cannot be used",
                cause=f"the cluster has it with {found} partitions, its file says {spec.partitions}",
                next_step="Point ESPER_KAFKA_BOOTSTRAP at another cluster or correct the topic file",
            )
