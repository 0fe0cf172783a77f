"""Every hostile statement through a running projector and on plain files: stopped with a clear error, nothing harmed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.core.errors import Busy, EsperError, OperationFailed, UsageError
from esper.projection import catch_up, list_projections, verify
from tests.conftest import RunningBroker
from tests.projection.hostile_sql import REFUSED, STOPPED
from tests.projection.log import one_run
from tests.projection.system import System, own_system, state, wait_for

#: A statement that has to be stopped is given this long.
_SECONDS = 1.0
_SETTINGS = {"sql_timeout_seconds": _SECONDS, "sql_memory_limit": "300MB"}


@pytest.fixture(scope="module")
def running(broker: RunningBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system whose projector runs; in the end its projections must be what the log says."""
    with own_system(broker, tmp_path_factory.mktemp("running"), **_SETTINGS) as system:
        one_run(system, "run-a")  # type: ignore[arg-type]
        with system.projector():
            catch_up(system.fabric)
            yield system
            assert verify(system.fabric, ["runs"])["equal"]


@pytest.fixture(scope="module")
def files(broker: RunningBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system without a projector: its files were left as they are; in the end they must still be what they were."""
    with own_system(broker, tmp_path_factory.mktemp("files"), **_SETTINGS) as system:
        one_run(system, "run-a")  # type: ignore[arg-type]
        catch_up(system.fabric)
        before = {path: path.read_bytes() for path in system.fabric.home.projections.rglob("*") if path.is_file()}
        yield system
        after = {path: path.read_bytes() for path in system.fabric.home.projections.rglob("*") if path.is_file()}
        assert after == before
        assert verify(system.fabric, ["runs"])["equal"]


def _stopped(system: System, sql: str) -> EsperError:
    with pytest.raises((UsageError, OperationFailed)) as caught:
        system.query(sql.replace("facts", "run_states"))
    assert caught.value.exit_code in (1, 2)
    assert caught.value.cause
    assert caught.value.next_step
    return caught.value


@pytest.mark.parametrize("sql", [*REFUSED, *STOPPED], ids=lambda sql: sql[:60])
def test_a_projector_goes_on(running: System, sql: str) -> None:
    """Goal: a hostile statement fails alone. Method: publish an event, ask it, see the event folded and only it."""
    before = running.count("run_states")
    running.publish(state("run-flow", before + 1), key="run-flow")
    _stopped(running, sql)
    wait_for(lambda: running.count("run_states") > before)
    assert running.count("run_states") == before + 1


@pytest.mark.parametrize("sql", [*REFUSED, *STOPPED], ids=lambda sql: sql[:60])
def test_plain_files_stay_as_they_are(files: System, sql: str) -> None:
    """Goal: the same without a projector. Method: ask it on the files; counts stay, and the fixture compares bytes."""
    _stopped(files, sql)
    assert files.count("run_states") == 3


def test_many_at_once_do_not_hold_up_the_fold(running: System) -> None:
    """Goal: the fold goes first. Method: 12 threads of hostile queries and 200 events meanwhile; the lag returns to 0."""
    ended, failures, done = list[EsperError](), list[BaseException](), threading.Event()

    def attack(sql: str) -> None:
        while not done.is_set():
            try:
                running.query(sql)
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
    """Goal: no statement writes a file. Method: only projection files, their logs and the engine's own are there."""
    _stopped(running, "copy (select 1) to 'stolen.csv'")
    names = {Path(path).suffix for path in running.fabric.home.projections.iterdir() if path.is_file()}
    assert names <= {".duckdb", ".wal", ".lock", ".json", ".fence"}
