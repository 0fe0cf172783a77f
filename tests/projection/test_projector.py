"""Tests of the projector and of everything that asks it, on the real broker."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from confluent_kafka import Producer

from esper.core.errors import Busy, IntegrityError, NotReadyError, OperationFailed, UsageError
from esper.core.home import Home
from esper.core.settings import Settings
from esper.leyline import messages as ly
from esper.oona import TopicCatalog, apply_topics, list_dead_letters
from esper.projection import (
    Built,
    Projector,
    catch_up,
    delete_all,
    fresh_query,
    list_projections,
    load_definitions,
    query,
    replay,
    run_document,
    runs_list,
    verify,
)
from esper.projection.definitions._folder import ProjectionFolder
from esper.projection.files._file import ProjectionFile
from esper.projection.serving._control import announcement_path, find_projector
from esper.projection.serving._server import serving
from tests.conftest import RunningBroker
from tests.projection.log import finish, one_epoch, one_run
from tests.projection.system import System, own_system, state, wait_for

_ENDLESS = "select count(*) from range(10000000) a, range(10000000) b where a.range + b.range = 7"


@pytest.fixture(scope="module")
def shared(broker: RunningBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One system for tests that only add to it."""
    with own_system(broker, tmp_path_factory.mktemp("shared"), sql_timeout_seconds=5.0) as system:
        one_run(system, "run-first")
        yield system


@pytest.fixture
def system(broker: RunningBroker, tmp_path: Path) -> Iterator[System]:
    """A system of a test's own, to be damaged."""
    with own_system(broker, tmp_path) as made:
        yield made


def _stored(system: System, name: str) -> Path:
    live = ProjectionFolder(system.fabric.home.projections).live(name)
    assert live is not None
    return live.path


def _shipped(system: System) -> list[str]:
    return [one.name for one in load_definitions(system.settings, system.fabric.topics)]


def test_the_log_becomes_answers(shared: System) -> None:
    """From events on Kafka to JSON: catch up without a projector, then ask for a run as the command line does."""
    catch_up(shared.fabric)
    with fresh_query(shared.fabric) as ask:
        document = run_document(ask, "run-first")
        assert document is not None
        assert [epoch["epoch"] for epoch in document["epochs"]] == [1, 2, 3]
        assert "run-first" in [row["run_id"] for row in runs_list(ask)]
    assert shared.query("select * from field_reports limit 5")[0]["run_id"] == "run-first"
    rows = {row["name"]: row for row in list_projections(shared.fabric)}
    assert sorted(rows) == _shipped(shared)
    assert rows["runs"]["built"]
    assert rows["runs"]["lag"] == 0
    assert rows["runs"]["records"] == rows["runs"]["applied"] > 0


def test_queries_are_answered_while_events_arrive(shared: System) -> None:
    """Reading and folding do not disturb each other: ask in a loop while another thread publishes; counts only grow."""
    with shared.projector():
        catch_up(shared.fabric)
        shared.publish(ly.TrainingRunClaimed(run_id="run-busy", attempt=1), key="run-busy")
        before = shared.count("run_states")
        published = threading.Event()

        def publish() -> None:
            for epoch in range(1, 101):
                shared.publish(state("run-busy", epoch), key="run-busy")
            published.set()

        thread = threading.Thread(target=publish)
        thread.start()
        seen = [before]
        while not published.is_set():
            seen.append(shared.count("run_states"))
        thread.join()
        catch_up(shared.fabric)
        assert seen == sorted(seen)
        assert shared.count("run_states") == before + 100
        assert shared.query("select max(epoch) as n from epochs where run_id = 'run-busy'") == [{"n": 100}]


def test_a_runaway_query_ends_alone(shared: System) -> None:
    """The fold goes on under an endless query, and only that one fails, at its deadline."""
    failures: list[Exception] = []

    def run_away() -> None:
        with pytest.raises(OperationFailed) as caught:
            shared.query(_ENDLESS)
        failures.append(caught.value)

    with shared.projector():
        thread = threading.Thread(target=run_away)
        thread.start()
        shared.publish(state("run-beside", 1), key="run-beside")
        wait_for(lambda: shared.query("select run_id from runs where run_id = 'run-beside'"))
        thread.join(timeout=30)
        assert "longer than 5 seconds" in str(failures[0])
        assert shared.count("runs") > 0


def test_errors_come_through_as_they_are(shared: System) -> None:
    """An error raised in the projector is the same error for its caller: a refused query, and a wrong name."""
    with shared.projector():
        with pytest.raises(UsageError, match="statements"):
            shared.query("select 1; select 2")
        with pytest.raises(UsageError, match="no_such_table") as caught:
            shared.query("select * from no_such_table")
        assert caught.value.next_step
        version = next(row["version"] for row in list_projections(shared.fabric) if row["name"] == "runs")
        with pytest.raises(UsageError, match="cannot go on with"):
            shared.client().adopt("runs", version, "../../etc/passwd")
        wrong = shared.fabric.home.projections / "building-1-wrong.duckdb"
        for content in (b"no database", _stored(shared, "urza_catalog").read_bytes()):
            wrong.write_bytes(content)
            with pytest.raises(IntegrityError, match="cannot be read"):
                shared.client().adopt("runs", version, wrong.name)
        wrong.unlink()
        assert query("select ? as a, ? as b", [1, "x"], settings=shared.settings).to_pylist() == [{"a": 1, "b": "x"}]


def test_only_the_token_opens_the_door(shared: System) -> None:
    """Any process may connect to loopback, so that a secret is asked for: wrong token, no body, wrong path."""
    with shared.projector():
        path = announcement_path(shared.fabric.home)
        found = json.loads(path.read_text())
        assert path.stat().st_mode & 0o777 == 0o600
        assert found.keys() == {"port", "token", "pid", "create_time"}
        assert _post(found["port"], "/query", "Bearer wrong", b"{}") == 401
        assert _post(found["port"], "/query", "", b"{}") == 401
        authorised = f"Bearer {found['token']}"
        assert _post(found["port"], "/nothing", authorised, b"{}") == 404
        for body in (b"no json", b"[]", b"{}", b'{"sql": 1}'):
            assert _post(found["port"], "/query", authorised, body) == 400
        assert _post(found["port"], "/query", authorised, b"x" * 2_000_000) == 400
        assert _post(found["port"], "/query", authorised, b'{"sql": "select 1"}') == 200
    assert not path.exists()
    assert find_projector(shared.fabric.home) is None


def _post(port: int, path: str, authorization: str, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    # It may answer before it has read all of a body that is too long.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request("POST", path, body=body, headers={"Authorization": authorization})
    try:
        return connection.getresponse().status
    except ConnectionResetError:
        return 400
    finally:
        connection.close()


def test_a_surprise_in_an_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the server's own ends one request with 500, and too many at once are turned away with 503."""
    entered, leave = threading.Event(), threading.Event()

    def surprise(_: dict[str, object]) -> object:
        raise ZeroDivisionError

    def slow(_: dict[str, object]) -> object:
        entered.set()
        assert leave.wait(20)
        return {}

    monkeypatch.setattr("esper.projection.serving._server._CONCURRENT_MAX", 1)
    with serving({"/surprise": surprise, "/slow": slow}, "token") as port:
        assert _post(port, "/surprise", "Bearer token", b"{}") == 500
        thread = threading.Thread(target=_post, args=(port, "/slow", "Bearer token", b"{}"))
        thread.start()
        assert entered.wait(20)
        assert _post(port, "/slow", "Bearer token", b"{}") == 503
        leave.set()
        thread.join()


def test_verify_compares_with_the_log(shared: System) -> None:
    """A sound projection equals its rebuild table by table, with a projector and without; the shape is a contract."""
    catch_up(shared.fabric)
    alone = verify(shared.fabric)
    with shared.projector():
        beside = verify(shared.fabric, ["runs"])
    assert alone["equal"]
    assert beside["equal"]
    assert [one["name"] for one in alone["projections"]] == _shipped(shared)
    table = next(one for one in beside["projections"][0]["tables"] if one["table"] == "run_states")
    assert table.keys() == {"table", "rows", "live", "replayed", "equal"}
    assert table["rows"] > 0
    assert table["live"] == table["replayed"]


def test_verify_names_what_was_changed(shared: System) -> None:
    """What is changed in a file by hand is found and named, and a replay heals it: change a row and a view."""
    catch_up(shared.fabric)
    connection = duckdb.connect(str(_stored(shared, "runs")))
    connection.execute("update run_states set val_loss = val_loss + 1e-12 where epoch = 2")
    connection.execute("create or replace view waiting_runs as select true as passed")
    connection.close()

    found = verify(shared.fabric)

    assert not found["equal"]
    different = {
        one["name"]: [entry["table"] for entry in one["tables"] if not entry["equal"]] for one in found["projections"]
    }
    assert different == {name: [] for name in _shipped(shared)} | {"runs": ["esper.definitions", "run_states"]}
    replay(shared.fabric, ["runs"])
    assert verify(shared.fabric, ["runs"])["equal"]


def test_a_view_that_others_cannot_use_is_damage(system: System) -> None:
    """A view changed by hand may leave others without sense: such a file is set aside and built again."""
    one_run(system, "run-a")
    catch_up(system.fabric)
    before = system.query("from runs")
    with duckdb.connect(str(_stored(system, "runs"))) as connection:
        connection.execute("create or replace view attempts as select true as passed")
    with pytest.raises(IntegrityError, match="cannot be read"):
        system.query("from runs")
    with system.projector():
        catch_up(system.fabric)
        assert system.query("from runs") == before


def test_projections_come_back_from_the_log(system: System) -> None:
    """All files deleted under a running projector, then a replay: nothing failed meanwhile, everything equals."""
    one_run(system, "run-a")
    finish(system, "run-a")
    reports: list[Built] = []
    with system.projector():
        catch_up(system.fabric)
        before = system.query("from runs")
        for path in system.fabric.home.projections.glob("*.duckdb*"):
            path.unlink()
        answers, done = [], threading.Event()

        def ask() -> None:
            while not done.is_set():
                answers.append(system.query("from runs"))

        thread = threading.Thread(target=ask)
        thread.start()
        rows = replay(system.fabric, progress=reports.append)
        done.set()
        thread.join()

        assert answers
        assert all(answer == before for answer in answers)
        assert verify(system.fabric)["equal"]
        one_epoch(system, "run-a", 4)
        catch_up(system.fabric)
        assert system.count("run_states") == 4
    assert {row["name"]: row["records"] for row in rows}["runs"] > 15
    assert all(row["events_per_second"] > 0 for row in rows if row["records"])
    assert sorted({report.name for report in reports}) == _shipped(system)
    assert verify(system.fabric)["equal"]
    names = [path.name.split("-")[0] for path in system.fabric.home.projections.iterdir()]
    assert sorted(names) == sorted([*_shipped(system), "definitions", "generation", "writer.lock"])


def test_an_unreadable_file_is_set_aside_and_built_again(system: System, caplog: pytest.LogCaptureFixture) -> None:
    """Damage costs a rebuild, not the answer: overwrite a file, start again, compare; the damaged bytes are kept."""
    one_run(system, "run-a")
    catch_up(system.fabric)
    before = system.query("from runs")
    path = _stored(system, "runs")
    path.write_bytes(b"damaged" * 1000)
    with pytest.raises(IntegrityError, match="cannot be read"):
        system.query("from runs")

    with caplog.at_level("WARNING", logger="esper.projection"), system.projector():
        catch_up(system.fabric)
        assert system.query("from runs") == before

    kept = path.with_name(f"{path.name}.unreadable-1")
    assert kept.read_bytes() == b"damaged" * 1000
    assert kept.name in caplog.text
    assert verify(system.fabric)["equal"]


def test_a_file_that_breaks_in_mid_life_is_replaced(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage found while folding is healed without a restart of the process: break one commit, see the rebuild."""
    one_run(system, "run-a")
    fold, broken = ProjectionFile._fold, list[Path]()

    def fold_once_badly(self: ProjectionFile, *arguments: object) -> int:
        if self.definition.name == "runs" and not broken:
            broken.append(self.path)
            raise duckdb.IOException("Corrupt database file: computed checksum does not match")
        return fold(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ProjectionFile, "_fold", fold_once_badly)
    with system.projector():
        wait_for(lambda: broken and find_projector(system.fabric.home))
        catch_up(system.fabric)
        assert system.count("run_states") == 3
    assert list(system.fabric.home.projections.glob("*.unreadable-1")) == [
        broken[0].with_name(f"{broken[0].name}.unreadable-1")
    ]


def test_a_topic_made_anew_stops_everything(system: System) -> None:
    """An offset means nothing in another topic: delete and make a topic again, and nobody goes on with it."""
    one_run(system, "run-a")
    catch_up(system.fabric)
    topic = system.topic("system-state")
    admin = system.fabric.cluster.admin

    def replace_topic_under_a_projector() -> None:
        with system.projector() as thread:
            for future in admin.delete_topics([topic]).values():
                future.result()
            wait_for(lambda: topic not in system.fabric.cluster.metadata().topics)
            wait_for(lambda: _make_again(system, topic))
            system.publish(state("run-b", 1), key="run-b")
            wait_for(lambda: not thread.is_alive())

    with pytest.raises(IntegrityError, match=topic) as caught:
        replace_topic_under_a_projector()
    assert "esper replay" in caught.value.next_step or "cut or replaced" in caught.value.next_step

    for attempt in (catch_up, verify):
        with pytest.raises(IntegrityError, match=topic):
            attempt(system.fabric)
    assert system.count("run_states") == 3
    replay(system.fabric)
    assert system.query("select run_id from run_states") == [{"run_id": "run-b"}]


def _make_again(system: System, topic: str) -> bool:
    """Apply the topics until the broker has forgotten the old one."""
    try:
        apply_topics(system.fabric.cluster, TopicCatalog.load(system.settings))
    except (OperationFailed, NotReadyError):
        return False
    return topic in system.fabric.cluster.metadata().topics


def test_forged_records_are_named_in_the_dead_letters(system: System) -> None:
    """A record that must not be believed leaves no row, stops nobody and is listed once, also after a rebuild."""
    topic = system.topic("runs")
    producer = Producer({"bootstrap.servers": system.fabric.bootstrap})
    for value in (b"garbage", b"", None):
        producer.produce(topic, key=b"run-x", value=value, partition=0)
    producer.flush(20)
    with system.projector():
        one_run(system, "run-a")
        catch_up(system.fabric)
        assert system.count("run_claims") == 1
        sql = "select reason, count(*) as n from runs.esper.records where disposition = 'discarded' group by all"
        assert sorted((row["reason"], row["n"]) for row in system.query(sql)) == [("EMPTY", 2), ("UNSIGNED", 1)]
        replay(system.fabric)
        assert verify(system.fabric)["equal"]
    letters = [letter for letter in list_dead_letters(system.fabric) if letter.topic == topic]
    assert [(letter.partition, letter.offset, letter.reason) for letter in letters] == [
        (0, 0, "UNSIGNED"),
        (0, 1, "EMPTY"),
        (0, 2, "EMPTY"),
    ]


_CHILD = """
import sys, threading
from esper.core.settings import Settings
from esper.oona import Fabric
from esper.projection import build_service

settings = Settings.model_validate_json(sys.stdin.readline())
with Fabric.open(settings, member="projector-0") as fabric:
    build_service(fabric).run(threading.Event())
"""


def test_a_killed_projector_loses_and_repeats_nothing(system: System) -> None:
    """SIGKILL a projector's process twice while events arrive: what it leaves goes on and equals a rebuild."""
    system.publish(ly.TrainingRunClaimed(run_id="run-a", attempt=1), key="run-a")
    for life in range(2):
        child = subprocess.Popen([sys.executable, "-c", _CHILD], stdin=subprocess.PIPE)
        assert child.stdin is not None
        child.stdin.write(_settings_json(system.settings).encode() + b"\n")
        child.stdin.flush()
        begun = life * 30
        for epoch in range(begun + 1, begun + 31):
            system.publish(state("run-a", epoch), key="run-a")
            if epoch == begun + 15:
                wait_for(lambda: find_projector(system.fabric.home))
        wait_for(lambda begun=begun: system.count("run_states") > begun)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdin.close()
    assert find_projector(system.fabric.home) is None

    catch_up(system.fabric)
    assert system.query("select count(*) as n, max(epoch) as m from epochs") == [{"n": 60, "m": 60}]
    assert verify(system.fabric)["equal"]


def _settings_json(settings: Settings) -> str:
    plain = settings.model_dump(mode="json")
    assert settings.leyline_secret is not None
    return json.dumps(plain | {"leyline_secret": settings.leyline_secret.get_secret_value()})


def test_one_process_writes(shared: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second projector of a home does not start: it says who is in the way."""
    monkeypatch.setattr("esper.projection.serving._projector.WRITER_SECONDS", 0.2)
    with shared.projector(), pytest.raises(Busy, match="are being written"):
        Projector(shared.fabric).run(threading.Event())


def test_a_file_that_another_process_holds_is_waited_for(shared: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB lets one process in: queries and folds wait for the other to leave, or say Busy when it does not."""
    catch_up(shared.fabric)
    hold = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(_stored(shared, "runs"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with monkeypatch.context() as patch:
            patch.setattr("esper.projection._query._HANDOVER_SECONDS", 0.2)
            with pytest.raises(Busy, match="is in use"):
                shared.count("runs")
        answers: list[int] = []
        waiting = [
            threading.Thread(target=lambda: answers.append(shared.count("runs"))),
            threading.Thread(target=lambda: answers.append(1 + catch_up(shared.fabric).records)),
        ]
        for thread in waiting:
            thread.start()
        other.stdin.close()
        for thread in waiting:
            thread.join(timeout=30)
    assert len(answers) == 2
    assert all(answer > 0 for answer in answers)


def test_what_was_never_built_is_said_so(system: System, tmp_path: Path) -> None:
    """Without a home or without files there is one message with the next step."""
    with pytest.raises(NotReadyError, match="esper init"):
        query("select 1", settings=Settings(_env_file=None, home=tmp_path / "nowhere"))
    with pytest.raises(NotReadyError, match="esper replay"):
        system.query("select 1")
    assert not any(row["built"] for row in list_projections(system.fabric))
    with pytest.raises(NotReadyError, match="esper replay"):
        verify(system.fabric)
    replay(system.fabric, ["runs"])
    with pytest.raises(UsageError, match="field_reports, urza_catalog were not built"):
        system.query("select * from field_reports")
    with pytest.raises(UsageError, match="no projection 'nope'"):
        replay(system.fabric, ["nope"])
    with pytest.raises(NotReadyError, match="field_reports was not built"):
        verify(system.fabric)


def test_projections_can_be_thrown_away(system: System) -> None:
    """Deleting is safe because everything is derived: delete all, see nothing left, catch up, compare."""
    one_run(system, "run-a")
    catch_up(system.fabric)
    assert delete_all(system.fabric) == 3
    assert not list(system.fabric.home.projections.glob("*.duckdb*"))
    catch_up(system.fabric)
    assert system.count("run_states") == 3
    assert verify(system.fabric)["equal"]


def test_a_stale_announcement_is_no_projector(shared: System) -> None:
    """Pids are reused: a file left by a dead process, or a broken one, is nobody."""
    home: Home = shared.fabric.home
    path = announcement_path(home)
    for content in ('{"port": 1, "token": "t", "pid": 1, "create_time": 0.0}', "{}", "no json"):
        path.write_text(content)
        assert find_projector(home) is None
    path.unlink()
