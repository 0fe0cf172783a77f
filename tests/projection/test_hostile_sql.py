"""Every hostile statement through a running projector and on plain files: a clear error, and nothing harmed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from esper.core.errors import Busy, EsperError, OperationFailed, UsageError
from esper.core.ids import sha256_hex
from esper.projection import catch_up, list_projections, query, verify
from esper.projection.definitions._folder import ProjectionFolder
from esper.projection.definitions._versions import readable_definitions
from esper.projection.records._ledger import Progress
from esper.projection.serving._projections import ReadableProjections
from tests.conftest import RunningBroker
from tests.projection.hostile_sql import REFUSED, STOPPED
from tests.projection.log import one_run
from tests.projection.system import System, own_system, state, wait_for

#: A statement that has to be stopped is given this long.
_SECONDS = 1.0
_SETTINGS = {"sql_memory_limit": "300MB"}


@pytest.fixture(scope="module")
def running(broker: RunningBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system whose projector runs; in the end its projections must be what the log says."""
    with own_system(broker, tmp_path_factory.mktemp("running"), **_SETTINGS) as system:
        one_run(system, "run-a")
        with system.projector():
            catch_up(system.fabric)
            yield system
            assert verify(system.fabric, ["runs"])["equal"]


@pytest.fixture(scope="module")
def files(broker: RunningBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReadableProjections]:
    """Files without a projector, opened as a query opens them; in the end they must be what they were."""
    with own_system(broker, tmp_path_factory.mktemp("files"), **_SETTINGS) as system:
        one_run(system, "run-a")
        catch_up(system.fabric)
        before = _contents(system)
        folder = ProjectionFolder(system.fabric.home.projections)
        definitions = readable_definitions(system.settings, system.fabric.topics, folder)
        opened = ReadableProjections(folder, definitions, system.settings)
        yield opened
        opened.close()
        assert _contents(system) == before
        assert verify(system.fabric, ["runs"])["equal"]


def _contents(system: System) -> dict[str, str]:
    """Digests of all files: bytes themselves would make a difference too long to print."""
    folder = system.fabric.home.projections
    return {
        str(path.relative_to(folder)): sha256_hex(path.read_bytes()) for path in folder.rglob("*") if path.is_file()
    }


def _check_stopped(ask: Callable[[str], object], sql: str) -> None:
    """Ask; the error must say what, why and what to do, and have the exit code of a failure or a misuse."""
    with pytest.raises((UsageError, OperationFailed)) as caught:
        ask(sql.replace("facts", "run_states"))
    assert caught.value.exit_code in (1, 2)
    assert caught.value.cause
    assert caught.value.next_step


def _epochs(progress: dict[str, list[Progress]]) -> int:
    """How many packets the projection `runs` has applied."""
    return sum(one.applied for one in progress["runs"] if one.topic.endswith("system-state"))


@pytest.mark.parametrize("sql", [*REFUSED, *STOPPED], ids=lambda sql: sql[:60])
def test_a_projector_goes_on(running: System, sql: str) -> None:
    """Goal: a hostile statement fails alone. Method: publish an event, ask it, see the event folded and only it."""
    client = running.client()
    before = _epochs(client.progress())
    running.publish(state("run-flow", before + 1), key="run-flow")
    _check_stopped(lambda text: client.query(text, seconds=_SECONDS), sql)
    wait_for(lambda: _epochs(client.progress()) > before)
    assert _epochs(client.progress()) == before + 1


@pytest.mark.parametrize("sql", [*REFUSED, *STOPPED], ids=lambda sql: sql[:60])
def test_plain_files_stay_as_they_are(files: ReadableProjections, sql: str) -> None:
    """Goal: the same without a projector. Method: ask it on the files; rows stay, and the fixture compares bytes."""
    _check_stopped(lambda text: files.query(text, seconds=_SECONDS), sql)
    assert files.query("select count(*) as n from run_states").to_pylist() == [{"n": 3}]


def test_many_at_once_do_not_hold_up_the_fold(running: System) -> None:
    """Goal: the fold goes first. Method: 12 threads of hostile queries, 200 events; the lag returns to 0."""
    ended, failures, done = list[EsperError](), list[BaseException](), threading.Event()

    def attack(sql: str) -> None:
        while not done.is_set():
            try:
                query(sql, timeout=_SECONDS, settings=running.settings)
                failures.append(AssertionError(f"answered: {sql}"))
            except (OperationFailed, Busy) as error:
                ended.append(error)
            except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
                failures.append(error)

    threads = [threading.Thread(target=attack, args=(sql,), daemon=True) for sql in STOPPED[:12]]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: len(ended) >= 3 or failures)
        for number in range(200):
            running.publish(state("run-many", number + 1), key="run-many")
        wait_for(lambda: all(row["lag"] == 0 for row in list_projections(running.fabric)))
    finally:
        done.set()
        for thread in threads:
            thread.join(timeout=60)
    assert failures == []
    assert not any(thread.is_alive() for thread in threads)
    assert {type(error) for error in ended} <= {OperationFailed, Busy}
    assert running.query("select count(*) as n from run_states where run_id = 'run-many'") == [{"n": 200}]


def test_nothing_is_left_in_the_folder(running: System) -> None:
    """Goal: no statement writes a file. Method: the names in the projections' folder before and after each writer."""
    folder = running.fabric.home.projections
    before = {path.name for path in folder.iterdir() if path.suffix != ".wal"}
    for sql in ("copy (select 1) to 'stolen.csv'", "attach 'stolen.duckdb' as s", "export database 'stolen'"):
        _check_stopped(running.query, sql)
    assert {path.name for path in folder.iterdir() if path.suffix != ".wal"} == before
