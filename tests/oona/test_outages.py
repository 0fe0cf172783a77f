"""A broker that is away: told in time at the start, waited for in the middle, and nothing lost when it returns."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka.admin import AdminClient

from esper.core.clock import Deadline
from esper.core.errors import BrokerUnavailable, EsperError, NotReadyError, SecretError
from esper.core.home import Home
from esper.core.ids import new_run_id
from esper.core.settings import Settings, load_settings
from esper.leyline import messages as ly
from esper.oona import Cluster, Consumer, Event, Fabric, Reader, TopicCatalog, plan_topics
from esper.oona.reading._range import AtTime, offsets_at
from tests.conftest import RunningBroker, StartBroker
from tests.oona.log import fresh_group, packet, read_run

SECRET = "0123456789abcdef" * 4


def settings_for(home: Path, **overrides: object) -> Settings:
    """Return settings of a home with one second of patience at the start."""
    return load_settings(**{"_env_file": None, "home": home, "connect_seconds": 1.0, **overrides})


def test_local_broker_that_does_not_run_is_told_at_once(tmp_path: Path) -> None:
    """A home without its broker says `esper up`: open the fabric of a fresh home."""
    settings = settings_for(tmp_path)
    Home.create(settings)
    with pytest.raises(BrokerUnavailable, match=r"does not run.*Run `esper up`"):
        Fabric.open(settings, member="test")


def test_missing_home_is_told_first(tmp_path: Path) -> None:
    """Nothing works without a home: open the fabric of a folder that is none."""
    with pytest.raises(NotReadyError, match="esper init"):
        Fabric.open(settings_for(tmp_path / "none"), member="test")


def test_cluster_that_does_not_answer_is_told_in_time(tmp_path: Path) -> None:
    """Whoever waits is told within the set time: point at a closed port and at one that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        closed = socket.create_server(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{closed.getsockname()[1]}", f"127.0.0.1:{silent.getsockname()[1]}"]
        closed.close()
        for address in addresses:
            settings = settings_for(tmp_path, kafka_bootstrap=address, leyline_secret=SECRET)
            Home.create(settings)
            started = Deadline(30.0)
            with pytest.raises(BrokerUnavailable, match=f"no broker at {address} answered for 1 seconds"):
                Fabric.open(settings, member="test")
            assert 30.0 - started.remaining_seconds < 4.0


def test_remote_cluster_needs_a_secret_and_no_java(tmp_path: Path, broker: RunningBroker) -> None:
    """Any cluster will do: reach the session's broker by its address from another home, without and with a secret."""
    settings = settings_for(tmp_path, kafka_bootstrap=broker.bootstrap)
    Home.create(settings)
    with pytest.raises(SecretError):
        Fabric.open(settings, member="test")
    settings = settings_for(tmp_path, kafka_bootstrap=broker.bootstrap, leyline_secret=SECRET, connect_seconds=10.0)
    with Fabric.open(settings, member="test") as fabric:
        assert fabric.bootstrap == broker.bootstrap
        assert plan_topics(fabric.cluster, fabric.topics).changes == ()


def test_cluster_without_topics_is_not_ready(tmp_path: Path, broker: RunningBroker) -> None:
    """Missing topics are told with the command that makes them: open with a catalogue that names one more."""
    folder = tmp_path / "topics"
    folder.mkdir()
    for spec in TopicCatalog.load(broker.settings):
        name = "decisions-not-there" if spec.name == "decisions" else spec.name
        text = spec.model_copy(update={"name": name}).model_dump_json()
        (folder / f"{name}.yaml").write_text(text)
    settings = broker.settings.model_copy(update={"topics_dir": folder})
    with pytest.raises(NotReadyError, match=r"lacks the topics decisions-not-there.*`esper topics apply`"):
        Fabric.open(settings, member="test")


def test_other_partition_counts_are_refused(tmp_path: Path, broker: RunningBroker) -> None:
    """A key must live where everybody looks for it: open with a file that says 4 partitions."""
    folder = tmp_path / "topics"
    folder.mkdir()
    for spec in TopicCatalog.load(broker.settings):
        partitions = 4 if spec.name == "decisions" else spec.partitions
        text = spec.model_copy(update={"partitions": partitions}).model_dump_json()
        (folder / f"{spec.name}.yaml").write_text(text)
    settings = broker.settings.model_copy(update={"topics_dir": folder})
    with pytest.raises(NotReadyError, match=r"decisions cannot be used.*8 partitions, its file says 4"):
        Fabric.open(settings, member="test")


def test_login_and_certificates_come_from_the_settings(tmp_path: Path) -> None:
    """A secured cluster is reached by settings alone: look at what every client would be configured with."""
    settings = settings_for(
        tmp_path,
        kafka_bootstrap="kafka.example:9093",
        kafka_security_protocol="SASL_SSL",
        kafka_sasl_username="esper",
        kafka_sasl_password="hush",  # noqa: S106 - no password of anything
        kafka_ssl_ca=tmp_path / "ca.pem",
    )
    config = Cluster(settings, "kafka.example:9093", client_id="esper.test").config()
    assert (config["bootstrap.servers"], config["client.id"]) == ("kafka.example:9093", "esper.test")
    assert (config["security.protocol"], config["sasl.mechanism"]) == ("SASL_SSL", "SCRAM-SHA-512")
    assert (config["sasl.username"], config["sasl.password"]) == ("esper", "hush")
    assert config["ssl.ca.location"] == str(tmp_path / "ca.pem")


class Member:
    """A consumer that runs in a thread of its own."""

    def __init__(self, fabric: Fabric, group: str) -> None:
        self.handled: Counter[tuple[str, int]] = Counter()
        self.failure: EsperError | None = None
        self.stop = threading.Event()
        self.consumer: Consumer = fabric.consumer(
            group=group,
            instance="member-0",
            topics=["system-state"],
            handlers={ly.SystemStatePacket: self._handle},
            publisher=fabric.publisher("tamiyo"),
        )
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _handle(self, event: Event) -> None:
        self.handled[(event.meta.subject, cast("ly.SystemStatePacket", event.message).current_epoch)] += 1

    def _run(self) -> None:
        try:
            self.consumer.run(self.stop)
        except EsperError as error:
            self.failure = error

    def end(self) -> None:
        """Stop, and wait until the thread is gone."""
        self.stop.set()
        self.thread.join(30)
        assert not self.thread.is_alive()

    def wait_for(self, run_id: str, epochs: int, *, seconds: float = 40.0) -> None:
        """Wait until so many epochs of a run were handled."""
        deadline, pause = Deadline(seconds), threading.Event()
        while sum(1 for run, _ in self.handled if run == run_id) < epochs:
            assert not deadline.expired, f"{self.handled} {self.failure}"
            assert self.thread.is_alive(), self.failure
            pause.wait(0.02)


def test_killed_broker_that_returns_loses_nothing(start_broker: StartBroker) -> None:
    """Kill the broker in mid-flow and start it again: publisher, member and reader go on, each event once."""
    running = start_broker()
    run_id, group = new_run_id(), fresh_group()
    with Fabric.open(running.settings, member="test") as fabric:
        member = Member(fabric, group)
        place = ("system-state", fabric.partition_of("system-state", run_id))
        with fabric.publisher("tolaria") as publisher, fabric.reader({place: "begin"}) as reader:
            for epoch in range(20):
                publisher.publish(packet(run_id, epoch), key=run_id)
            member.wait_for(run_id, 20)
            running.local.kill()
            pending = [publisher.submit(packet(run_id, epoch), key=run_id) for epoch in range(20, 40)]
            running.local.start()
            offsets = [one.result().offset for one in pending]
            assert offsets == sorted(offsets)
            for epoch in range(40, 50):
                publisher.publish(packet(run_id, epoch), key=run_id)
            member.wait_for(run_id, 50)
            read = [cast("ly.SystemStatePacket", event.message).current_epoch for event in reader.read_to_end()]
        member.end()
        assert member.failure is None
        assert member.handled == {(run_id, epoch): 1 for epoch in range(50)}
        assert read == list(range(50))
        sequences = [event.meta.sequence for event in read_run(fabric, "system-state", run_id)]
        assert sequences == list(range(1, 51))
        successor = Member(fabric, group)
        with fabric.publisher("tolaria") as publisher:
            publisher.publish(packet(run_id, 50), key=run_id)
        successor.wait_for(run_id, 1)
        successor.end()
        assert successor.handled == {(run_id, 50): 1}, "the group's offsets outlive the broker"


def test_broker_that_stays_away_ends_everybody_in_time(start_broker: StartBroker) -> None:
    """Patience has an end: kill the broker for good with 3 s of patience; look at publisher, reader and member."""
    running = start_broker(broker_retry_seconds=3.0)
    run_id = new_run_id()
    with Fabric.open(running.settings, member="test") as fabric:
        member = Member(fabric, fresh_group())
        publisher = fabric.publisher("tolaria")
        reader = fabric.reader(dict.fromkeys(fabric.topics.partitions("system-state"), "begin"))
        publisher.publish(packet(run_id, 1), key=run_id)
        member.wait_for(run_id, 1)
        assert len(reader.read_to_end()) == 1
        running.local.kill()
        started = Deadline(60.0)
        with pytest.raises(BrokerUnavailable, match=r"tolaria cannot write to the log"):
            publisher.publish(packet(run_id, 2), key=run_id)
        with pytest.raises(BrokerUnavailable):
            publisher.submit(packet(run_id, 3), key=run_id)
        with pytest.raises(BrokerUnavailable, match=r"answered for 3 seconds"):
            read_for(reader, started)
        member.thread.join(30)
        assert isinstance(member.failure, BrokerUnavailable)
        assert 2.5 < 60.0 - started.remaining_seconds < 25.0
        assert publisher.metrics().acknowledged == 1
        publisher.close()
        with pytest.raises(BrokerUnavailable):
            Cluster.open(running.settings)


def test_an_answer_without_an_offset_is_asked_for_again(fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    """librdkafka may answer -1001 and no error after a restart: let it do so for each end and for a time."""
    run_id = new_run_id()
    place = ("system-state", fabric.partition_of("system-state", run_id))
    with fabric.publisher("tolaria") as publisher:
        receipt = publisher.publish(packet(run_id, 1), key=run_id)
    real, unknown = AdminClient.list_offsets, iter([True, False, True, False, True])

    def sometimes_nothing(*arguments: Any, **options: Any) -> Any:
        futures = real(*arguments, **options)
        if next(unknown, False):
            for future in futures.values():
                future.result().offset = -1001
        return futures

    monkeypatch.setattr(AdminClient, "list_offsets", sometimes_nothing)
    assert fabric.cluster.watermarks([place])[place][1] > receipt.offset
    assert offsets_at(fabric, AtTime(receipt.append_time_ms), [place])[place] <= receipt.offset
    assert next(unknown, None) is None


def read_for(reader: Reader, deadline: Deadline) -> None:
    """Read until the deadline is over."""
    while not deadline.expired:
        reader.read(0.2)
