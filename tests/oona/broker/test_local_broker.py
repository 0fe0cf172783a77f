"""The local broker, always the real one: its life, its death, its neighbours, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType
from filelock import FileLock

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.errors import (
    BrokerUnavailable,
    Busy,
    IntegrityError,
    NotReadyError,
    OperationFailed,
    SettingsError,
    UsageError,
)
from esper.core.home import Home, ProcessStamp, read_stamp, write_stamp
from esper.core.settings import load_settings
from esper.oona.broker import LocalBroker, _local, _ports, _process, jars_folder
from esper.oona.broker._process import BrokerProcess
from esper.oona.broker._settings import MESSAGE_BYTES_MAX, cluster_id
from tests.oona.broker.conftest import MakeBroker

TOPIC = "kept"
START = """
import sys
from esper.core.home import Home
from esper.core.settings import load_settings
from esper.oona.broker import LocalBroker
settings = load_settings(home=sys.argv[1])
print(LocalBroker(Home.create(settings), settings).start())
"""


def start_elsewhere(home: Path) -> subprocess.Popen[str]:
    """Start the broker of `home` in a process that ends as soon as the broker is ready, as `esper up` does."""
    command = [sys.executable, "-c", START, str(home)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome_of(process: subprocess.Popen[str]) -> str:
    """Return what the process printed; fail with its complaint if it failed."""
    output, complaint = process.communicate(timeout=120)
    assert process.returncode == 0, complaint
    return output.strip()


def create_topic(bootstrap: str, name: str) -> None:
    """Create a topic of one partition."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(name, num_partitions=1, replication_factor=1)])[name].result(timeout=10)


def produce(bootstrap: str, value: bytes) -> None:
    """Append one record and wait until the broker acknowledged it."""
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "message.max.bytes": MESSAGE_BYTES_MAX})
    failures: list[object] = []
    producer.produce(TOPIC, value, on_delivery=lambda error, _: failures.append(error) if error else None)
    assert producer.flush(15) == 0
    assert failures == []


def values(bootstrap: str, count: int) -> list[tuple[bytes | None, int]]:
    """Return the first `count` values of the topic, each with the kind of its timestamp."""
    settings = {"bootstrap.servers": bootstrap, "group.id": "reader", "fetch.message.max.bytes": MESSAGE_BYTES_MAX}
    found: list[tuple[bytes | None, int]] = []
    deadline = Deadline(20.0)
    with closing(Consumer(settings)) as consumer:
        consumer.assign([TopicPartition(TOPIC, 0, 0)])
        while len(found) < count and not deadline.expired:
            for message in consumer.consume(count, timeout=1.0):
                assert message.error() is None
                found.append((message.value(), message.timestamp()[0]))
    return found


@contextmanager
def listener() -> Iterator[int]:
    """Listen on some port of loopback, as a stranger would, and give the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def stranger(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that has nothing to do with a broker, save for what stands on its command line."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()", *arguments], stdin=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_data_survives_stop_and_kill_on_the_same_port(make_broker: MakeBroker) -> None:
    """Goal: a home's log outlives every life of its broker. Method: append, stop, append, SIGKILL, append, read all."""
    broker, home = make_broker()
    largest = os.urandom(MESSAGE_BYTES_MAX - 64 * 1024)
    assert broker.bootstrap() is None
    bootstrap = broker.start()
    assert broker.bootstrap() == broker.start() == bootstrap == f"127.0.0.1:{home.broker_port}"
    first = read_stamp(home.broker / "broker.json")
    create_topic(bootstrap, TOPIC)
    produce(bootstrap, b"first life")
    produce(bootstrap, largest)
    assert broker.stop()
    assert not broker.stop()
    assert broker.bootstrap() is None

    assert broker.start() == bootstrap
    produce(bootstrap, b"second life")
    assert broker.kill()
    assert broker.bootstrap() is None
    assert (home.broker / "broker.json").exists(), "a crash leaves the stamp, and the next start must see through it"

    started = SYSTEM_CLOCK.monotonic()
    assert broker.start() == bootstrap
    assert SYSTEM_CLOCK.monotonic() - started < 30
    assert read_stamp(home.broker / "broker.json") != first
    produce(bootstrap, b"third life")
    log_append_time = 2
    expected = [b"first life", largest, b"second life", b"third life"]
    assert values(bootstrap, 4) == [(value, log_append_time) for value in expected]

    admin = AdminClient({"bootstrap.servers": bootstrap})
    assert set(admin.list_topics(timeout=5).topics) == {TOPIC, "__consumer_offsets"}
    resource = ConfigResource(ResourceType.BROKER, "1")
    configuration = admin.describe_configs([resource])[resource].result(timeout=10)
    assert configuration["auto.create.topics.enable"].value == "false"
    assert "Kafka Server started" in (home.logs / "broker.log").read_text()


def test_two_homes_and_two_starters_side_by_side(make_broker: MakeBroker) -> None:
    """Goal: two homes share nothing, two `up` of one home start one broker, and it outlives them. Method: processes."""
    (left, left_home), (right, right_home) = make_broker("left"), make_broker("right")
    starters = [start_elsewhere(root) for root in (left_home.root, left_home.root, right_home.root)]
    addresses = [outcome_of(starter) for starter in starters]
    assert addresses == [left.bootstrap(), left.bootstrap(), right.bootstrap()]
    assert left.bootstrap() != right.bootstrap()
    create_topic(addresses[0], TOPIC)
    other = AdminClient({"bootstrap.servers": addresses[2]})
    assert TOPIC not in other.list_topics(timeout=5).topics

    process = BrokerProcess(left_home).find()
    assert process is not None
    assert os.getsid(process.pid) == process.pid, "a session of its own: the terminal's signals do not reach it"
    assert set(process.environ()) <= {"PATH", "HOME", "TZ", "LD_LIBRARY_PATH", "LC_ALL"}
    listening = {each.laddr.ip for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN}
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}

    # A starter that was killed before it wrote the stamp leaves an orphan, which the next command finds.
    (left_home.broker / "broker.json").unlink()
    assert left.bootstrap() is None
    assert left.start() == addresses[0] == left.bootstrap()
    (left_home.broker / "broker.json").unlink()
    assert left.stop()
    assert process.wait(timeout=10) is None
    assert right.bootstrap() == addresses[2]


def test_a_start_that_fails_shows_the_last_log_lines(make_broker: MakeBroker) -> None:
    """Goal: the cause is on the screen, and no process stays. Method: storage that was made for another node."""
    broker, home = make_broker()
    data = home.broker / "data"
    data.mkdir()
    identity = cluster_id(home.home_id)
    (data / "meta.properties").write_text(f"version=1\ncluster.id={identity}\nnode.id=7\n")
    with pytest.raises(BrokerUnavailable, match="it ended while it was starting; its last words:") as caught:
        broker.start()
    assert caught.value.exit_code == 3
    assert "Stored node id 7 doesn't match" in caught.value.cause
    assert str(home.logs) in caught.value.next_step
    assert broker.bootstrap() is None
    assert not (home.broker / "broker.json").exists()


@pytest.mark.parametrize("content", ["version=1\ncluster.id=AAAAAAAAAAAAAAAAAAAAAA\nnode.id=1\n", "", None])
def test_storage_of_another_home_is_refused(make_broker: MakeBroker, content: str | None) -> None:
    """Goal: exit 4 at once, storage untouched. Method: storage of another cluster, of none, and without its file."""
    broker, home = make_broker()
    data = home.broker / "data"
    data.mkdir()
    if content is not None:
        (data / "meta.properties").write_text(content)
    with pytest.raises(IntegrityError, match=r"is not this home's.*Put home.json and key back") as caught:
        broker.start()
    assert caught.value.exit_code == 4
    assert broker.bootstrap() is None
    assert [path.name for path in data.iterdir()] == ([] if content is None else ["meta.properties"])


def test_a_start_that_takes_too_long_leaves_nothing(make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: exit 3 at the deadline, not a broker nobody knows. Method: a deadline that is over at the first look."""
    broker, home = make_broker()
    monkeypatch.setattr(_local, "Deadline", lambda _: Deadline(0.0))
    with pytest.raises(BrokerUnavailable, match=r"was not ready within 60 s"):
        broker.start()
    assert broker.bootstrap() is None
    assert BrokerProcess(home).find_orphan() is None


def test_storage_that_cannot_be_formatted_is_reported(make_broker: MakeBroker) -> None:
    """Goal: Kafka's own words, and no half-made storage. Method: a file in the way, no time, a folder in the way."""
    broker, home = make_broker()
    (home.broker / "data.unfinished").write_text("")
    with pytest.raises(BrokerUnavailable, match=r"could not be formatted; its last words:(.|\n)*data\.unfinished"):
        broker.start()
    (home.broker / "data.unfinished").unlink()
    (home.broker / "data.unfinished").mkdir()  # As a crash leaves it.
    impatient, _ = make_broker(broker_start_seconds=0.01)
    with pytest.raises(BrokerUnavailable, match="was not formatted within"):
        impatient.start()
    (home.broker / "format.properties").unlink()
    (home.broker / "format.properties").mkdir()
    with pytest.raises(SettingsError, match="cannot be written"):
        broker.start()
    assert not (home.broker / "data").exists()
    assert broker.bootstrap() is None


def test_a_taken_port_is_named(make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: exit 3, the port and the next step, no Java. Method: a stranger listens on the set or remembered port."""
    with listener() as port:
        broker, home = make_broker("set", broker_port=port)
        remembering, other = make_broker("remembered")
        other.remember_broker_port(port)
        monkeypatch.setattr(_ports, "_GRACE_SECONDS", 0.1)
        for refused in (broker, remembering):
            with pytest.raises(Busy, match=rf"port {port} of the local broker is taken.*ESPER_BROKER_PORT") as caught:
                refused.start()
            assert caught.value.exit_code == 3
    assert home.broker_port is None
    assert list(home.broker.iterdir()) == [home.broker / "broker.lock"]


def test_a_port_that_is_being_freed_is_waited_for() -> None:
    """Goal: a start right after a crash does not fail. Method: free the port while it is asked for."""
    with ThreadPoolExecutor(1) as pool, listener() as port:
        asked = pool.submit(_ports.require_free, port)
        assert not _ports.is_free(port)
        assert not asked.done()
    assert asked.result() == port


def test_no_free_port_at_all_is_reported(make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: the search for a port ends. Method: no port counts as free."""
    broker, _ = make_broker()
    monkeypatch.setattr(_ports, "is_free", lambda _: False)
    with pytest.raises(Busy, match=r"no free port was found.*ESPER_BROKER_PORT"):
        broker.start()


def test_a_reused_pid_is_not_signalled(make_broker: MakeBroker) -> None:
    """Goal: no stranger dies. Method: stamps that name a stranger's pid, each right but for one thing."""
    broker, home = make_broker()
    with stranger() as process, stranger(f"-Desper.home={home.home_id}:{home.root}/other") as near:
        right = ProcessStamp.of(process.pid, home.root)
        stamps = [
            right,  # pid, start time and home agree: only the command line tells.
            ProcessStamp.of(near.pid, home.root),
            ProcessStamp(process.pid, right.create_time - 3600, str(home.root)),
            ProcessStamp(process.pid, right.create_time, str(home.root / "other")),
        ]
        for stamp in stamps:
            write_stamp(home.broker / "broker.json", stamp)
            assert broker.bootstrap() is None
            assert not broker.kill()
            assert not broker.stop()
            assert not (home.broker / "broker.json").exists()
        assert process.poll() is None
        assert near.poll() is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", json.dumps({"pid": 1}).encode()])
def test_a_damaged_stamp_is_nobody(make_broker: MakeBroker, content: bytes) -> None:
    """Goal: a half-written file stops nothing. Method: damaged content."""
    broker, home = make_broker()
    (home.broker / "broker.json").write_bytes(content)
    assert broker.bootstrap() is None
    assert not broker.stop()


def launch_stand_in(home: Home, code: str) -> tuple[BrokerProcess, int]:
    """Run Python code where Java would run, under the home's marker, until it prints a line."""
    process = BrokerProcess(home)
    pid = process.launch([sys.executable, "-c", code, process.marker], dict(os.environ))
    deadline = Deadline(20.0)
    while not process.output_path.read_text():
        assert not deadline.expired
    return process, pid


def test_a_broker_is_found_from_its_first_moment(make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a slow start is no end. Method: look at once, 100 times, for a child that had no time to take its name.

    The stamp is written without waiting for the disk, which would give it that time.
    """
    _, home = make_broker()
    process = BrokerProcess(home)

    def write(path: Path, stamp: ProcessStamp) -> None:
        path.write_text(json.dumps(asdict(stamp)))

    monkeypatch.setattr(_process, "write_stamp", write)
    for _ in range(100):
        pid = process.launch(["/bin/sh", "-c", "kill -STOP $$", process.marker], {})
        found = process.find()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert found is not None
        assert found.pid == pid


def test_a_broker_that_ignores_signals_is_killed_and_then_reported(
    make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: `down` ends, one way or the other. Method: a process that ignores SIGTERM, then one no signal reaches."""
    broker, home = make_broker()
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
    process, pid = launch_stand_in(home, code)
    monkeypatch.setattr(_local, "_STOP_SECONDS", 0.2)
    with monkeypatch.context() as immortal:
        immortal.setattr(_local, "_KILL_SECONDS", 0.2)
        immortal.setattr(psutil.Process, "send_signal", lambda *_: None)
        with pytest.raises(OperationFailed, match=f"process {pid} still runs after SIGKILL"):
            broker.stop()
    assert broker.stop()
    assert process.find() is None
    assert not process.end(signal.SIGKILL, seconds=1.0)
    assert not psutil.pid_exists(pid), "its launcher collected it"


def test_an_ended_broker_that_nobody_collects_is_gone(make_broker: MakeBroker) -> None:
    """Goal: `down` returns where no init collects orphans. Method: another process stops our child; it is a zombie."""
    _, home = make_broker()
    process, pid = launch_stand_in(home, "import signal; print('ready', flush=True); signal.pause()")
    stop = START.replace(".start()", ".stop()")
    started = SYSTEM_CLOCK.monotonic()
    done = subprocess.run([sys.executable, "-c", stop, str(home.root)], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert SYSTEM_CLOCK.monotonic() - started < 20, "it did not wait for the zombie to go away"
    assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert not process.end(signal.SIGKILL, seconds=1.0)
    assert not psutil.pid_exists(pid)


def test_a_home_that_cannot_be_written_is_named(make_broker: MakeBroker) -> None:
    """Goal: exit 2 and a next step. Method: a file where the broker's folder must be."""
    broker, home = make_broker()
    home.broker.rmdir()
    home.broker.write_text("")
    with pytest.raises(SettingsError, match=r"cannot be written.*Set ESPER_HOME"):
        broker.start()
    home.broker.unlink()
    home.broker.mkdir()


@pytest.mark.parametrize("name", ["with,comma", "with$dollar", "with:colon"])
def test_a_path_that_kafka_cannot_read_is_refused(make_broker: MakeBroker, name: str) -> None:
    """Goal: no broker with its data elsewhere. Method: characters that its configuration reads differently."""
    broker, home = make_broker(name)
    with pytest.raises(SettingsError, match="cannot hold a local broker"):
        broker.start()
    assert list(home.broker.iterdir()) == [home.broker / "broker.lock"]


def test_a_starter_that_hangs_is_reported(make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: no endless wait for another `up`. Method: hold its lock in another handle and shorten the patience."""
    broker, home = make_broker(broker_start_seconds=0.1)
    monkeypatch.setattr(_local, "_STOP_SECONDS", 0.1)
    with FileLock(home.broker / "broker.lock"), ThreadPoolExecutor(1) as pool:
        error = pool.submit(broker.start).exception()
    assert isinstance(error, Busy)
    assert "is being started or stopped" in str(error)


def test_missing_jars_name_the_set_up(make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Goal: exit 3 and `make setup`. Method: an installation without jars."""
    broker, home = make_broker()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert jars_folder() == tmp_path / "share" / "esper-grow" / "jars"
    with pytest.raises(NotReadyError, match="Run `make setup`"):
        broker.start()
    assert home.broker_port is None


def test_another_cluster_leaves_java_alone(make_broker: MakeBroker) -> None:
    """Goal: a cluster's settings never start or stop a broker here. Method: each method with one set."""
    broker, home = make_broker(kafka_bootstrap="broker:9092", leyline_secret="s" * 32)
    for refused in (broker.start, broker.stop, broker.kill):
        with pytest.raises(UsageError, match="ESPER_KAFKA_BOOTSTRAP names the cluster broker:9092"):
            refused()
    assert broker.bootstrap() is None
    assert list(home.broker.iterdir()) == []


def test_importing_the_broker_is_enough_to_find_one(tmp_path: Path) -> None:
    """Goal: asking for a broker works where none ever ran and no extra is installed. Method: a bare home."""
    settings = load_settings(home=tmp_path / "home")
    home = Home.create(settings)
    with FileLock(home.broker / "broker.lock"):
        assert LocalBroker(home, settings).bootstrap() is None


def test_the_broker_keeps_nothing_of_its_starter(tmp_path: Path, make_broker: MakeBroker) -> None:
    """Goal: a caller's lock or pipe is not held for as long as the broker lives. Method: start it beside open files."""
    held = (tmp_path / "lock").open("w")
    reading, writing = os.pipe()
    for number in (held.fileno(), writing):
        os.set_inheritable(number, True)
    local, home = make_broker("home")
    with closing(held):
        local.start()
        process = BrokerProcess(home).find()
        assert process is not None
        assert str(tmp_path / "lock") not in _open_files(process.pid)
        os.close(writing)
        assert os.read(reading, 1) == b"", "nobody else holds the pipe's other end"
        os.close(reading)


def _open_files(pid: int) -> set[str]:
    """Return what a process holds open; it goes on working, so a file may be closed while the list is read."""
    targets = set[str]()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            targets.add(str(entry.readlink()))
    return targets
