"""Tests of rebuilds beside the live projection: switch, rollback, other versions."""

# ruff: noqa: S608 - tables and topics are the tests' own

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from esper.core.clock import SYSTEM_CLOCK
from esper.core.errors import IntegrityError, NotReadyError
from esper.projection import catch_up, list_projections, replay, roll_back, verify
from esper.projection.definitions._folder import ProjectionFolder
from tests.campaigns import WHOLE
from tests.conftest import RunningBroker
from tests.projection.log import one_run
from tests.projection.system import System, own_system, state

QUERIES = 1_000 if WHOLE else 200
QUERY_THREADS = 4
#: A cut runs beside other tests, on a machine that may be busy with all of them.
SWITCH_SECONDS_MAX = 0.1 if WHOLE else 2.0


@pytest.fixture
def system(broker: RunningBroker, tmp_path: Path) -> Iterator[System]:
    """A system of a test's own: its projections' folders are edited."""
    with own_system(broker, tmp_path, sql_timeout_seconds=20.0) as made:
        yield made


def _edit(system: System, name: str, file: str, change: Callable[[str], str]) -> None:
    assert system.settings.projections_dir is not None
    path = system.settings.projections_dir / name / file
    path.write_text(change(path.read_text()))


def _add_marked_view(system: System) -> None:
    """Make another version of `runs`: one view more."""
    _edit(
        system,
        "runs",
        "views.sql",
        lambda text: text + "\ncreate view marked as select epoch + 1000 as m from run_states;\n",
    )


def _row(system: System, name: str) -> dict[str, Any]:
    return next(row for row in list_projections(system.fabric) if row["name"] == name)


def _differences(system: System) -> list[tuple[str, str]]:
    return [
        (one["name"], table["table"])
        for one in verify(system.fabric)["projections"]
        for table in one["tables"]
        if not table["equal"]
    ]


class _Askers:
    """Threads that ask one query again and again, and keep what was wrong with the answers."""

    def __init__(self, system: System, count: int) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self.slowest = 0.0
        self._system = system
        self._left = count
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(QUERY_THREADS)
        self._threads = [self._pool.submit(self._ask) for _ in range(QUERY_THREADS)]

    def wait(self) -> None:
        """Return once every query is answered."""
        self._pool.shutdown()
        for thread in self._threads:
            thread.result()

    def _ask(self) -> None:
        seen = 0
        while True:
            with self._lock:
                if self._left == 0:
                    return
                self._left -= 1
            begun = SYSTEM_CLOCK.monotonic()
            try:
                [row] = self._system.query(
                    "select (select count(*) from run_states) as facts, (select count(*) from runs.esper.records where"
                    f" topic = '{self._system.topic('system-state')}' and disposition = 'applied') as ledger"
                )
            except Exception as error:  # noqa: BLE001 - counted, whatever it is
                self._note(repr(error))
                continue
            with self._lock:
                self.slowest = max(self.slowest, SYSTEM_CLOCK.monotonic() - begun)
                self.answered += 1
            if row["facts"] != row["ledger"]:
                self._note(f"half a state: {row}")
            if row["facts"] < seen:
                self._note(f"back from {seen} to {row['facts']}")
            seen = row["facts"]

    def _note(self, what: str) -> None:
        with self._lock:
            self.failures.append(what)


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_queries_never_fail_while_versions_change(
    system: System, record_property: Callable[[str, object], None]
) -> None:
    """Goal: nobody who asks notices a rebuild, a switch or a rollback, but by what the new version adds.

    Method: four threads ask for facts and ledger in one statement while a publisher writes and versions are built,
    switched in and rolled back; every answer is whole, none fails, and no count ever goes back.
    """
    one_run(system, "run-a")
    for epoch in range(4, 300):
        system.publish(state("run-a", epoch), key="run-a")
    done = threading.Event()

    def publish() -> None:
        epoch = 300
        while not done.is_set():
            system.publish(state("run-a", epoch), key="run-a")
            epoch += 1

    switches: list[dict[str, Any]] = []
    with system.projector():
        catch_up(system.fabric)
        publisher = threading.Thread(target=publish)
        publisher.start()
        try:
            askers = _Askers(system, QUERIES)
            for number in range(1, 4 if WHOLE else 2):
                _edit(
                    system,
                    "runs",
                    "views.sql",
                    lambda text, n=number: f"{text}\ncreate view v{n} as select {n} as n;\n",
                )
                [built] = replay(system.fabric, ["runs"])
                switches += [built, roll_back(system.fabric, "runs"), roll_back(system.fabric, "runs")]
            askers.wait()
        finally:
            done.set()
            publisher.join()
        catch_up(system.fabric)
        assert verify(system.fabric, ["runs"])["equal"]
    waited = sorted(one["switch_seconds"] for one in switches)
    figures = {
        "queries": askers.answered,
        "failed": len(askers.failures),
        "switches": len(switches),
        "median_switch_ms": round(waited[len(waited) // 2] * 1000, 1),
        "slowest_switch_ms": round(waited[-1] * 1000, 1),
        "slowest_query_ms": round(askers.slowest * 1000, 1),
    }
    for name, value in figures.items():
        record_property(name, value)
    assert askers.failures == []
    assert askers.answered == QUERIES
    assert waited[-1] < SWITCH_SECONDS_MAX, figures


def test_a_changed_folder_takes_over_while_the_projector_runs(system: System) -> None:
    """Edit a folder under a running projector: old answers until the rebuild, new ones after it, old ones again."""
    one_run(system, "run-a")
    with system.projector():
        catch_up(system.fabric)
        first = _row(system, "runs")["version"]
        _add_marked_view(system)
        assert system.count("run_states") == 3
        with pytest.raises(Exception, match="marked"):
            system.query("from marked")

        [row] = replay(system.fabric, ["runs"])

        assert row["previous"] == first != row["version"]
        assert system.query("select max(m) as m from marked") == [{"m": 1003}]
        listed = _row(system, "runs")
        assert (listed["version"], listed["kept"], listed["pinned"]) == (row["version"], first, False)

        back = roll_back(system.fabric, "runs")

        assert (back["version"], back["previous"], back["pinned"]) == (first, row["version"], True)
        with pytest.raises(Exception, match="marked"):
            system.query("from marked")
        system.publish(state("run-a", 4), key="run-a")
        catch_up(system.fabric)
        assert system.count("run_states") == 4
        assert _differences(system) == []
    _goes_on_after_a_restart(system, first, row["version"])


def _goes_on_after_a_restart(system: System, first: str, second: str) -> None:
    """What was rolled back to stays, is said so, folds on and can be checked, until the next rebuild."""
    listed = _row(system, "runs")
    assert (listed["version"], listed["folder_version"], listed["pinned"]) == (first, second, True)
    assert system.count("run_states") == 4
    system.publish(state("run-a", 5), key="run-a")
    with system.projector():
        catch_up(system.fabric)
        assert system.count("run_states") == 5
        assert _differences(system) == []
    forward = roll_back(system.fabric, "runs")
    assert (forward["version"], forward["pinned"]) == (second, False)
    assert system.query("select count(*) as n from marked") == [{"n": 5}]
    files = [one for one in ProjectionFolder(system.fabric.home.projections).files() if one.name == "runs"]
    assert [one.version for one in files] == [first, second]


def test_a_new_folder_joins_a_running_projector(system: System) -> None:
    """A projection is added without a restart: make a folder that reads a topic nobody read, and rebuild it."""
    one_run(system, "run-a")
    assert system.settings.projections_dir is not None
    folder = system.settings.projections_dir / "losses"
    with system.projector():
        catch_up(system.fabric)
        folder.mkdir()
        topics = f"topics: [{system.topic('system-state')}]"
        (folder / "projection.yaml").write_text(
            f"name: losses\nwhy: A test.\n{topics}\nmessages: [SystemStatePacket]\n"
        )
        (folder / "schema.sql").write_text(
            "create table losses (topic_partition integer, record_offset bigint, run_id varchar, loss double);\n"
        )
        (folder / "fold.sql").write_text(
            "insert into losses by name select topic_partition, record_offset, training_run_id as run_id,"
            " validation_loss as loss from SystemStatePacket;\n"
        )
        (folder / "views.sql").write_text(
            "create view best as select run_id, min(loss) as loss from losses group by all;\n"
        )
        [row] = replay(system.fabric, ["losses"])
        assert row["previous"] is None
        assert system.query("select loss from best") == [{"loss": 1.5}]
        system.publish(state("run-a", 4), key="run-a")
        catch_up(system.fabric)
        assert system.query("select loss from best") == [{"loss": 0.25}]
        with pytest.raises(NotReadyError, match="no earlier file"):
            roll_back(system.fabric, "losses")
    assert _differences(system) == []


def test_a_failed_build_leaves_the_live_one_alone(system: System) -> None:
    """A file that is spoilt before it is adopted costs the rebuild only: overwrite it, see the old one go on."""
    one_run(system, "run-a")
    with system.projector():
        catch_up(system.fabric)
        version = _row(system, "runs")["version"]
        wrong = system.fabric.home.projections / "building-1-runs.duckdb"
        wrong.write_bytes(b"no database")
        with pytest.raises(IntegrityError, match="cannot be read"):
            system.client().adopt("runs", version, wrong.name)
        system.publish(state("run-a", 4), key="run-a")
        catch_up(system.fabric)
        assert system.count("run_states") == 4
        wrong.unlink()


def test_without_a_projector_the_same_holds(system: System) -> None:
    """Rebuild and rollback write by themselves when nobody else does, and bring the kept file up to the log's end."""
    one_run(system, "run-a")
    replay(system.fabric)
    _add_marked_view(system)
    assert system.count("run_states") == 3
    [row] = replay(system.fabric, ["runs"])
    system.publish(state("run-a", 4), key="run-a")
    back = roll_back(system.fabric, "runs")
    assert back["pinned"]
    assert back["previous"] == row["version"]
    assert system.count("run_states") == 4
    assert _differences(system) == []
