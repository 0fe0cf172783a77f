"""What a restore refuses, and that one which is killed, anywhere, is gone on with or begun anew."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from typer.testing import CliRunner

from esper.cli._app import app
from esper.core.errors import IntegrityError, OperationFailed, SecretError, UsageError
from esper.core.home import Home
from esper.core.settings import Settings
from esper.oona import Cluster, TopicCatalog, apply_topics
from esper.oona.copying import delete_topics
from esper.oona.proof import verify_cluster
from esper.projection.archive import Layout, Restorer, archive_of, sealing
from tests.campaigns import WHOLE
from tests.conftest import RunningBroker, running_broker
from tests.projection.archive.logs import (
    everything,
    fill,
    forget_beginning,
    open_fabric,
    records_only,
    seal,
    write_oddities,
)

#: Where a restore is killed, one after the other: module, name, and at which call of it.
POINTS = (
    ("esper.projection.archive._restore", "delete_topics", 1),
    ("esper.projection.archive._restore", "create_for_copy", 1),
    ("esper.oona.copying", "ExactWriter.write", 20),
    ("esper.oona.copying", "GapMarker.leave", 2),
    ("esper.oona.copying", "ExactWriter.write", 3),
    ("esper.projection.archive._restore", "trim", 1),
    ("esper.projection.archive._restore", "compare_partition", 5),
    ("esper.projection.archive._finish", "apply_topics", 1),
    ("esper.projection.archive._finish", "write_groups", 1),
    ("esper.projection.archive._finish", "OonaClient.publish_log_restored", 1),
)


@dataclass(frozen=True)
class SealedLog:
    """A log that was sealed, on a broker that may be emptied."""

    running: RunningBroker
    before: dict[Any, Any]

    @property
    def layout(self) -> Layout:
        """Where it is archived."""
        return archive_of(self.running.home)

    def clear(self, *, topics: bool) -> None:
        """Take all topics away; with `topics`, make them anew as `esper up` does."""
        cluster, catalog = self.cluster, TopicCatalog.load(self.running.settings)
        present = cluster.metadata().topics
        delete_topics(cluster, {spec.name for spec in catalog if spec.name in present})
        (self.running.home.root / "archive-restore.json").unlink(missing_ok=True)
        shutil.rmtree(self.layout.restored, ignore_errors=True)
        if topics:
            apply_topics(cluster, catalog)

    @property
    def cluster(self) -> Cluster:
        """The broker."""
        return Cluster.open(self.running.settings, home=self.running.home)

    def restore(self, **options: Any) -> Any:
        """Restore it here."""
        return Restorer(self.running.settings, self.layout).restore(**options)

    def check(self) -> None:
        """Compare what is there with what was sealed."""
        after = everything(self.running)
        for place, (span, _) in self.before.items():
            low, high = after[place][0]
            assert (low, high if place != ("operations", 0) else span[1]) == span
            after[place] = (span, [raw for raw in after[place][1] if raw.record.offset < span[1]])
        assert records_only(after) == records_only(self.before)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SealedLog]:
    """A log with gaps and a lost beginning, sealed."""
    with running_broker(tmp_path_factory.mktemp("restore") / "home") as running:
        with open_fabric(running) as fabric:
            fill(fabric, runs=2)
            write_oddities(running.bootstrap, "seed-events")
            forget_beginning(fabric, "telemetry", 2)
            seal(fabric)
        yield SealedLog(running, everything(running))


def test_a_cluster_that_holds_records_is_refused(sealed: SealedLog) -> None:
    """Goal: a restore overwrites nothing. Method: put one record onto an empty cluster, restore, read it back."""
    sealed.clear(topics=True)
    producer = Producer({"bootstrap.servers": sealed.running.bootstrap})
    producer.produce("runs", b"somebody's", b"key", 3)
    assert producer.flush(10) == 0
    with pytest.raises(UsageError, match=r"is not empty: 1 partitions hold, or held, records: runs-3 offsets 0 to 0"):
        sealed.restore()
    with pytest.raises(UsageError, match="is not empty"):
        sealed.restore(again=True)
    assert [raw.record.value for raw in everything(sealed.running)[("runs", 3)][1]] == [b"somebody's"]


def test_a_home_without_the_keys_is_refused(sealed: SealedLog, tmp_path: Path) -> None:
    """Goal: no log is made that its home cannot verify. Method: restore into homes that lack one key or the other."""
    sealed.clear(topics=False)
    settings = Settings(
        _env_file=None, home=tmp_path / "other", kafka_bootstrap=sealed.running.bootstrap, leyline_secret="x" * 40
    )
    home = Home.create(settings)
    with pytest.raises(SecretError, match="does not hold the log key"):
        Restorer(settings, sealed.layout).restore()
    for name in ("log-key", "log-key.pub"):
        shutil.copy(sealed.running.home.root / name, home.root / name)
    with pytest.raises(SecretError, match="signed with a key that this home does not hold"):
        Restorer(settings, sealed.layout).restore()
    assert "runs" not in sealed.cluster.metadata().topics, "nothing was made"


def test_an_altered_archive_is_refused(sealed: SealedLog, tmp_path: Path) -> None:
    """Goal: only what was sealed is restored. Method: flip a bit of a copy's segment, restore."""
    sealed.clear(topics=False)
    root = tmp_path / "copy"
    shutil.copytree(sealed.layout.root, root)
    path = max((root / "segments" / "runs").rglob("*.avro"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(IntegrityError, match="cannot be restored"):
        Restorer(sealed.running.settings, Layout(root)).restore()
    assert "runs" not in sealed.cluster.metadata().topics, "nothing was made"


def test_what_another_wrote_meanwhile_is_found_and_begun_anew(sealed: SealedLog) -> None:
    """Goal: no offset is off by one unseen. Method: a stranger writes while records are restored; then `--again`."""
    sealed.clear(topics=True)
    producer = Producer({"bootstrap.servers": sealed.running.bootstrap})

    def interfere(place: object, _: int) -> None:
        if place == ("system-state", 0) or not interfered:
            interfered.append(place)
            for partition in range(8):
                producer.produce("system-state", b"somebody's", b"key", partition)
            assert producer.flush(10) == 0

    interfered: list[object] = []
    with pytest.raises((IntegrityError, OperationFailed), match=r"restore --again"):
        sealed.restore(report=interfere)
    with pytest.raises((IntegrityError, OperationFailed), match=r"restore --again"):
        sealed.restore()
    restored = sealed.restore(again=True)
    assert not restored.resumed
    sealed.check()


def _restore_and_die(settings: Settings, root: Path, point: tuple[str, str, int]) -> None:
    """Restore; end this process by SIGKILL right after the given call."""
    module, name, count = point
    owner: Any = importlib.import_module(module)
    *outer, attribute = name.split(".")
    for one in outer:
        owner = getattr(owner, one)
    original, calls = getattr(owner, attribute), [0]

    def counted(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, attribute, counted)
    Restorer(settings, Layout(root)).restore()
    os._exit(0)


@pytest.mark.campaign
def test_a_killed_restore_is_gone_on_with(sealed: SealedLog) -> None:
    """Goal: a kill costs time, not the log. Method: SIGKILL at up to ten places, one after the other; then compare."""
    sealed.clear(topics=True)
    for point in POINTS if WHOLE else POINTS[3::2]:
        child = multiprocessing.get_context("spawn").Process(
            target=_restore_and_die, args=(sealed.running.settings, sealed.layout.root, point)
        )
        child.start()
        child.join(120)
        assert child.exitcode == -signal.SIGKILL, f"it was to be killed at {point}"
    restored = sealed.restore()
    assert restored.resumed
    sealed.check()
    after = everything(sealed.running)[("operations", 0)][1]
    kinds = [(raw.record.header("type") or b"").decode().rpartition(".")[2] for raw in after]
    assert kinds.count("LogRestored") == 1
    with open_fabric(sealed.running) as fabric:
        bad = {(one.topic, one.kind.value) for one in verify_cluster(fabric).bad}
    assert {topic for topic, _ in bad} == {"seed-events"}, "what strangers wrote there stays bad, and nothing else is"


def test_the_commands(sealed: SealedLog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Goal: the commands and their JSON shapes hold. Method: restore, verify, list and seal by them, then spoil it."""
    sealed.clear(topics=True)
    monkeypatch.setenv("ESPER_HOME", str(sealed.running.home.root))
    runner = CliRunner()

    def run(*words: str, code: int = 0) -> dict[str, Any]:
        result = runner.invoke(app, ["archive", *words, "--json"])
        assert (result.exit_code, result.exception if code == 0 else None) == (code, None), result.output
        return dict(json.loads(result.stdout))

    restored = run("restore")
    assert set(restored) == {"archive", "seal", "partitions", "records", "groups", "blobs", "resumed"}
    assert restored["records"] == sum(len(raws) for _, raws in sealed.before.values())
    verified = run("verify", "--live")
    assert verified["ok"]
    assert verified["live"]["records"] == verified["records"] == restored["records"]
    listed = run("list")
    assert [seal["number"] for seal in listed["seals"]] == [1]
    assert sum(row["records"] for row in listed["partitions"]) == restored["records"]
    copy = tmp_path / "copy"
    shutil.copytree(sealed.layout.root, copy)
    again = run("seal", "--archive", str(copy))
    assert set(again) == {
        "archive",
        "number",
        "segments",
        "records",
        "bytes",
        "blobs",
        "groups",
        "complete",
        "new",
        "unknown_topics",
    }
    assert (again["number"], again["new"], again["records"]) == (2, True, 2), "LogRestored and a checkpoint"
    path = next((copy / "segments" / "runs").rglob("*.avro"))
    path.write_bytes(path.read_bytes()[:-1])
    spoiled = run("verify", "--archive", str(copy), code=4)
    assert (spoiled["first_bad"]["topic"], spoiled["first_bad"]["kind"]) == ("runs", "altered")


def test_a_restored_log_is_sealed_and_restored_again(sealed: SealedLog, tmp_path: Path) -> None:
    """Goal: a log may be lost twice. Method: restore, write on, seal, lose, restore; compare, and prove the end."""
    sealed.clear(topics=False)
    layout = Layout(tmp_path / "copy")
    shutil.copytree(sealed.layout.root, layout.root)
    Restorer(sealed.running.settings, layout).restore()
    with open_fabric(sealed.running) as fabric:
        fill(fabric, prefix="second")
        with sealing(fabric, layout) as sealer:
            assert sealer.seal().number == 2
    twice = SealedLog(sealed.running, everything(sealed.running))
    sealed.clear(topics=False)
    Restorer(sealed.running.settings, layout).restore()
    twice.check()
    with open_fabric(sealed.running) as fabric:
        verdict = verify_cluster(fabric)
    assert verdict.restores == 2
    assert {one.topic for one in verdict.bad} == {"seed-events"}, "what strangers wrote stays bad, and nothing else is"
