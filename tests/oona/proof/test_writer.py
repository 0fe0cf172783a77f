"""The writer of checkpoints on a real broker: killed and followed, beside a topic that was made again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from esper.core._log_key import log_public_key, open_log_key, read_public_key
from esper.core.clock import Deadline
from esper.core.errors import Busy, IntegrityError, SecretError, UsageError
from esper.core.home import member_lock
from esper.core.ids import new_run_id
from esper.leyline import Record
from esper.leyline import messages as ly
from esper.oona import Fabric, apply_topics, build_housekeeper
from esper.oona.proof import KafkaLog, Request, Span, append_checkpoint, verify_bundle, verify_cluster
from esper.oona.proof._prove import export_from_cluster
from esper.oona.proof._writer import read_checkpoints
from tests.conftest import StartBroker
from tests.oona.log import append, packet
from tests.oona.proof.recorded import last_number, wait_for_checkpoint, write_events

#: A member in a process of its own that does nothing but write checkpoints, to be killed at any moment.
_WRITER = """
import sys, threading
from pathlib import Path
from esper.core.settings import load_settings
from esper.oona import Fabric
from esper.oona.proof import CheckpointWriter
settings = load_settings(_env_file=None, home=Path(sys.argv[1]), checkpoint_records=20)
with Fabric.open(settings, member="killed-0") as fabric, fabric.publisher("oona") as publisher:
    print("ready", flush=True)
    CheckpointWriter(fabric, publisher).run(threading.Event())
"""
_KILLS = 4


@contextmanager
def killed_writer(home: Path) -> Iterator[None]:
    """Start a writer, wait until it is about to work, and kill -9 it at the end of the block."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ESPER_")}
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(home)], env=clean, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            process.kill()


def numbers(fabric: Fabric) -> list[int]:
    """Return the numbers of all checkpoints in the log, in the order in which they stand there."""
    with fabric.reader({("operations", 0): "begin"}) as reader:
        found = [event.message for event in reader.read_to_end() if isinstance(event.message, ly.LogCheckpoint)]
    return [ly.LogCheckpointContent.FromString(one.content).number for one in found]


def test_killed_writer_is_followed_without_a_gap(start_broker: StartBroker) -> None:
    """Nothing stays unsigned between two lives: kill -9 writers while events come, then let one finish; verify."""
    running = start_broker()
    with Fabric.open(running.settings, member="test") as fabric:
        for _ in range(_KILLS):
            before = last_number(fabric)
            with killed_writer(running.home.root):
                write_events(fabric, rounds=8)
                wait_for_checkpoint(fabric, before + 1)
        append_checkpoint(fabric)
        verdict = verify_cluster(fabric)
        found = numbers(fabric)
    assert verdict.ok, verdict.document()["first_bad"]
    assert verdict.covered == verdict.records - 1
    assert sorted(set(found)) == list(range(1, found[-1] + 1))
    assert found[-1] >= _KILLS


def test_real_tampering_is_named(start_broker: StartBroker) -> None:
    """What can be done to a real broker is found: append forged and copied records, delete a head, remake a topic."""
    running = start_broker()
    with Fabric.open(running.settings, member="test") as fabric:
        write_events(fabric, rounds=5)
        append_checkpoint(fabric)
        assert append_checkpoint(fabric) is None, "a log of which only checkpoints are new needs no other one"
        assert verify_cluster(fabric).ok
        (forged,) = append(fabric, [Record("decisions", 3, -1, b"run", b"forged")])
        found = [one.place() for one in verify_cluster(fabric).bad]
        assert found == [{"topic": "decisions", "partition": 3, "offset": forged.offset, "kind": "unsigned"}]
        (genuine,) = KafkaLog(fabric).read({("runs", 0): Span(0, 1)})
        (copy,) = append(fabric, [genuine])
        assert [(one.topic, one.offset, one.kind) for one in verify_cluster(fabric).bad][1:] == [
            ("runs", copy.offset, "duplicate")
        ]
        assert verify_cluster(fabric, Request("runs", 0, 10)).ok
        _delete_head(fabric, "system-state", 0, 5)
        _remake(fabric, "seed-events")
        verdict = verify_cluster(fabric)
        kinds = {(one.topic, str(one.kind)): one.offset for one in verdict.bad}
        shared = verify_cluster(fabric, processes=2)
    assert shared.document() == verdict.document(), "two processes find what one finds"
    assert kinds[("system-state", "truncated")] == 0
    assert kinds[("seed-events", "replaced")] == 0


def test_writer_leaves_out_what_it_cannot_go_on_with(
    start_broker: StartBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """A topic that was made again is never blessed: remake one, write on, and look what the checkpoint covers."""
    running = start_broker()
    with Fabric.open(running.settings, member="test") as fabric:
        write_events(fabric, rounds=3)
        append_checkpoint(fabric)
        _remake(fabric, "seed-events")
        write_events(fabric, rounds=3)
        append_checkpoint(fabric)
        verdict = verify_cluster(fabric)
    assert {(one.topic, one.kind) for one in verdict.bad} == {("seed-events", "replaced")}
    assert "seed-events-0 gets no more checkpoints: its topic was deleted and made again" in caplog.text


def test_housekeeper_signs_and_exports(start_broker: StartBroker, tmp_path: Path) -> None:
    """The member does it all: run the housekeeper, publish, stop it, export the run, check it as a stranger."""
    running = start_broker(checkpoint_records=10)
    run, stop = new_run_id(), threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            build_housekeeper(fabric).run(stop)
        except BaseException as error:  # noqa: BLE001 - shown in the thread of the test
            failures.append(error)

    with Fabric.open(running.settings, member="housekeeper-0") as fabric:
        thread = threading.Thread(target=work)
        thread.start()
        with fabric.publisher("tolaria") as publisher:
            for epoch in range(30):
                publisher.publish(packet(run, epoch), key=run)
        wait_for_checkpoint(fabric, 1)
        stop.set()
        thread.join(60)
        assert not failures
        verdict = verify_cluster(fabric)
        assert verdict.ok, verdict.document()["first_bad"]
        assert verdict.covered >= 30
        bundle = tmp_path / "audit.jsonl"
        assert export_from_cluster(fabric, bundle, run_id=run).records == 30
        with pytest.raises(UsageError, match="is there already"):
            export_from_cluster(fabric, bundle, run_id=run)
        with fabric.publisher("tolaria") as publisher:
            late = publisher.publish(packet(run, 30), key=run)
        with member_lock(fabric.home, "housekeeper-0"), pytest.raises(Busy):
            append_checkpoint(fabric)
        later = tmp_path / "later.jsonl"
        assert export_from_cluster(fabric, later, run_id=run).records == 31
    public_key = log_public_key(running.home.root)
    assert public_key is not None
    with later.open("rb") as file:
        checked = verify_bundle(file, public_key=public_key)
    assert checked.ok, checked.document()["first_bad"]
    assert (checked.records, late.offset) == (31, 30)
    answer = audit_verify_as_a_stranger(later, running.home.root / "log-key.pub", tmp_path)
    assert (answer["ok"], answer["records"]) == (True, 31)


def audit_verify_as_a_stranger(bundle: Path, public_key: Path, folder: Path) -> dict[str, Any]:
    """Run `esper audit verify` in a folder without a home, a secret or a broker."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ESPER_")}
    done = subprocess.run(
        [sys.executable, "-m", "esper.cli", "audit", "verify", str(bundle), "--public-key", str(public_key), "--json"],
        env=clean | {"ESPER_HOME": str(folder / "no-home")},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_another_homes_key_writes_nothing(start_broker: StartBroker) -> None:
    """Checkpoints that exist can be continued by their own key alone: put another key into the home."""
    running = start_broker()
    root = running.home.root
    with Fabric.open(running.settings, member="test") as fabric:
        write_events(fabric, rounds=1)
        append_checkpoint(fabric)
        first = open_log_key(root).public_key
        for name in ("log-key", "log-key.pub"):
            (root / name).unlink()
        write_events(fabric, rounds=1)
        with pytest.raises(IntegrityError, match="another key"):
            append_checkpoint(fabric)
        fold, foreign = read_checkpoints(KafkaLog(fabric), first)
        assert (fold.number, foreign) == (1, 0)
        assert verify_cluster(fabric, public_key=first).ok
        assert verify_cluster(fabric).bad[0].kind == "checkpoint"


def test_log_key_is_kept_from_others(tmp_path: Path) -> None:
    """A private key that others can read is no key: make one, read it again, open its mode, swap its public half."""
    key = open_log_key(tmp_path)
    assert open_log_key(tmp_path).public_key == key.public_key == log_public_key(tmp_path)
    assert (tmp_path / "log-key").stat().st_mode & 0o777 == 0o600
    assert read_public_key(key.public_key.hex()) == key.public_key
    (tmp_path / "hex").write_text(key.public_key.hex() + "\n")
    assert read_public_key(str(tmp_path / "hex")) == key.public_key
    for nonsense in ("", "no-such-file", str(tmp_path / "log-key"), "ab" * 31):
        with pytest.raises(UsageError):
            read_public_key(nonsense)
    (tmp_path / "log-key").chmod(0o644)
    with pytest.raises(SecretError, match="open to other users"):
        open_log_key(tmp_path)
    (tmp_path / "log-key").chmod(0o600)
    (tmp_path / "log-key.pub").write_text("00" * 32)
    with pytest.raises(SecretError, match="does not belong"):
        open_log_key(tmp_path)
    (tmp_path / "log-key").write_text("no key")
    with pytest.raises(SecretError, match="no Ed25519 private key"):
        open_log_key(tmp_path)


def _delete_head(fabric: Fabric, topic: str, partition: int, offset: int) -> None:
    futures = fabric.cluster.admin.delete_records([TopicPartition(topic, partition, offset)])
    for future in futures.values():
        future.result(30)


def _remake(fabric: Fabric, topic: str) -> None:
    """Delete a topic and make it again, as whoever administers the cluster could."""
    for future in fabric.cluster.admin.delete_topics([topic]).values():
        future.result(30)
    deadline = Deadline(60)
    while topic in fabric.cluster.metadata().topics:
        assert not deadline.expired
    apply_topics(fabric.cluster, fabric.topics)
