"""Tests of the accounts: at every commit each offset has a line or holds no record, and a skip is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from esper.core.errors import IntegrityError
from esper.leyline import Record, RecordColumns
from esper.projection import Definition, catch_up, verify
from esper.projection.files._committed import CommittedFile
from esper.projection.sql._database import Database
from tests.conftest import RunningBroker
from tests.projection.conftest import OpenWorkbench, Workbench
from tests.projection.log import Log, mixed, one_epoch, one_run
from tests.projection.system import own_system, state

Open = Callable[[Log], Workbench]
_ADD_UP = "select topic, topic_partition from runs.esper.accounts where not adds_up"


@pytest.fixture
def open_committed(open_workbench: OpenWorkbench, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Return a function that opens a workbench whose files are those of the projector."""

    def build(log: Log) -> Workbench:
        def file(database: Database, definition: Definition, path: Path) -> CommittedFile:
            return CommittedFile(database, definition, path, holds=log.holds)

        monkeypatch.setattr("tests.projection.conftest.ProjectionFile", file)
        return open_workbench(log)

    return build


def test_the_accounts_add_up_at_every_commit(open_committed: Open) -> None:
    """Fold copies, forgeries and strangers one read at a time, and ask in SQL after each commit."""
    log = Log()
    bench = open_committed(log)
    for _ in range(4):
        mixed(log)
        bench.fold()
        assert bench.rows(_ADD_UP) == []
    [(read, lines, without)] = bench.rows("select sum(read), sum(lines), sum(without_record) from runs.esper.accounts")
    assert (read, without) == (lines, 0)
    assert read > 100
    found = bench.rows("select sum(applied) > 0, sum(deduplicated) > 0, sum(discarded) from runs.esper.accounts")
    assert found == [(True, True, 4)]
    bench.rows("update runs.esper.progress set applied = applied - 1, filtered = filtered + 1 where topic = 'runs'")
    assert bench.rows(_ADD_UP) != []


class _Forgetful:
    """Reads as the source does, and loses the records at one place once it may."""

    def __init__(self, log: Log, lost: Record) -> None:
        self._read = log.source.read
        self._lost = lost

    def __call__(self, timeout: float, limit: int) -> RecordColumns:
        return RecordColumns.of([one for one in self._read(timeout, limit).records() if one != self._lost])


@pytest.mark.parametrize("number", range(10))
def test_a_record_that_a_reader_loses_is_missed(
    open_committed: Open, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Lose one record between the log and the engine, drawn at random: the batch that passes it is refused whole."""
    log = Log()
    one_run(log)
    bench = open_committed(log)
    bench.fold()
    before = bench.contents("runs")
    already = len(log.source.records)
    one_run(log, "run-b", epochs=4)
    one_epoch(log, "run-a", 4)
    taken = [one for one in log.source.records[already:] if one.topic in ("runs", "system-state", "decisions")]
    chooser = random.Random(number)  # noqa: S311 - a seeded choice
    behind = {(one.topic, one.partition): one for one in taken}
    lost = chooser.choice([one for one in taken if behind[(one.topic, one.partition)] is not one])
    with monkeypatch.context() as patch:
        patch.setattr(log.source, "read", _Forgetful(log, lost))
        with pytest.raises(IntegrityError, match="would pass over 1 records") as caught:
            bench.fold()
    assert f"partition {lost.partition} of topic {lost.topic}" in str(caught.value)
    assert f"offsets {lost.offset}:" in caught.value.cause
    assert caught.value.exit_code == 4
    assert bench.contents("runs") == before
    bench.fold()
    assert bench.rows(_ADD_UP) == []
    assert bench.rows("select count(*) from run_states") == [(8,)]


def _go_on(bench: Workbench) -> None:
    """Fold what came, without beginning anew where the files end."""
    for _ in range(4):
        bench.folding.step(0)


def test_the_last_record_is_missed_with_the_next(open_committed: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost record with nothing behind it cannot be told from one that has not come; the next batch tells."""
    log = Log()
    one_run(log)
    lost = next(one for one in reversed(log.source.records) if one.topic == "system-state")
    bench = open_committed(log)
    with monkeypatch.context() as patch:
        patch.setattr(log.source, "read", _Forgetful(log, lost))
        bench.fold()
        one_epoch(log, "run-a", 4)
        with pytest.raises(IntegrityError, match="would pass over 1 records"):
            _go_on(bench)
    assert bench.rows("select count(*) from run_states") == [(2,)]


@pytest.mark.parametrize("step", ["_insert_ledger", "_write_progress"])
def test_a_step_that_is_left_out_is_refused(open_committed: Open, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """The ledger's lines and the offsets are compared with each other: leave out the writing of either."""
    log = Log()
    one_run(log)
    bench = open_committed(log)

    def nothing(*_: object) -> None:
        pass

    with monkeypatch.context() as patch:
        patch.setattr(CommittedFile, step, nothing)
        with pytest.raises(IntegrityError, match="do not add up"):
            bench.fold()
    bench.fold()
    assert bench.rows(_ADD_UP) == []


def test_a_line_that_is_doubled_is_refused(open_committed: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line too many and one too few are no balance: read one record twice in the place of its neighbour."""
    log = Log()
    one_run(log)
    states = [one for one in log.source.records if one.topic == "system-state"]
    read = log.source.read

    def confused(timeout: float, limit: int) -> RecordColumns:
        return RecordColumns.of([states[0] if one == states[1] else one for one in read(timeout, limit).records()])

    bench = open_committed(log)
    with monkeypatch.context() as patch:
        patch.setattr(log.source, "read", confused)
        with pytest.raises(IntegrityError, match=r"out of order"):
            bench.fold()


#: Offsets that a reader makes of 0 to 5: what is lost is made up for in number and sum, or only the order is wrong.
_BALANCED = ([0, 1, 1, 4, 4, 5], [0, 2, 1, 3, 4, 5], [1, 0, 2, 3, 4, 5], [0, 1, 2, 3, 5, 4])


@pytest.mark.parametrize("given", _BALANCED, ids=str)
def test_what_comes_twice_or_out_of_order_is_refused(
    open_committed: Open, monkeypatch: pytest.MonkeyPatch, given: list[int]
) -> None:
    """Goal: number and sum prove nothing. Method: a reader that repeats, drops and swaps so that both are right."""
    log = Log()
    for epoch in range(1, 7):
        one_epoch(log, "run-a", epoch)
    place = next((one.topic, one.partition) for one in log.source.records if one.topic == "system-state")
    states = [one for one in log.source.records if (one.topic, one.partition) == place]
    read = log.source.read

    def confused(timeout: float, limit: int) -> RecordColumns:
        ours, others = list[Record](), list[Record]()
        for one in read(timeout, limit).records():
            (ours if (one.topic, one.partition) == place else others).append(one)
        return RecordColumns.of([*others, *([states[number] for number in given] if ours else [])])

    bench = open_committed(log)
    with monkeypatch.context() as patch:
        patch.setattr(log.source, "read", confused)
        with pytest.raises(IntegrityError, match="out of order") as caught:
            bench.fold()
        assert caught.value.exit_code == 4
        # Were it not for that, the gate before the commit tells by itself what is missing.
        patch.setattr(CommittedFile, "_check_order", lambda *_: None)
        if len(set(given)) < len(given):
            with pytest.raises(IntegrityError, match=r"two lines|pass over|do not add up"):
                bench.fold()
    bench.fold()
    assert bench.rows(_ADD_UP) == []
    assert bench.rows("select count(*) from run_states") == [(6,)]


def test_offsets_without_a_record_are_asked_for_once_and_kept(open_committed: Open) -> None:
    """Markers of transactions take offsets and give no record: leave offsets out of the log, and see them named."""
    log = Log()
    one_run(log)
    for index, one in enumerate(log.source.records):
        if one.topic == "system-state":
            log.source.records[index] = replace(one, offset=one.offset * 3 + 2)
    bench = open_committed(log)
    bench.fold()
    gaps = "select first_offset, next_offset from runs.esper.gaps order by all"
    assert bench.rows(gaps) == [(0, 2), (3, 5), (6, 8)]
    assert bench.rows(_ADD_UP) == []
    assert bench.rows("select without_record from runs.esper.accounts where topic = 'system-state' and read > 0") == [
        (6,)
    ]


def test_transactions_of_strangers_do_not_stop_the_fold(broker: RunningBroker, tmp_path: Path) -> None:
    """On the real broker: one transaction committed and one aborted between our events; their markers are no skip."""
    with own_system(broker, tmp_path) as system:
        topic = system.topic("system-state")
        system.publish(state("run-a", 1), key="run-a")
        producer = Producer(
            {"bootstrap.servers": system.fabric.bootstrap, "transactional.id": f"stranger-{system.prefix}"}
        )
        producer.init_transactions(30)
        for end in (producer.commit_transaction, producer.abort_transaction):
            producer.begin_transaction()
            for partition in range(8):
                producer.produce(topic, value=b"strange", key=b"k", partition=partition)
            producer.flush(30)
            end(30)
        system.publish(state("run-a", 2), key="run-a")
        with system.projector():
            catch_up(system.fabric)
            accounts: list[dict[str, Any]] = system.query("from runs.esper.accounts where read > 0")
            assert all(row["adds_up"] for row in accounts)
            assert sum(row["without_record"] for row in accounts if row["topic"] == topic) >= 1
            assert sum(row["discarded"] for row in accounts) == 16
            assert system.count("run_states") == 2
            assert verify(system.fabric)["equal"]
