"""Tests of the fold: what a log becomes, that it becomes it once, whole, and only from the log it began with."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from esper.core.errors import IntegrityError, OperationFailed
from esper.leyline import Record, full_name
from esper.leyline import messages as ly
from esper.projection import Definition
from esper.projection._verify import compared
from esper.projection.columnar import Batch, Decided
from esper.projection.files._contents import open_cursor, read_contents
from esper.projection.files._file import ProjectionFile
from esper.projection.intake._intake import COMMIT_RECORDS
from esper.projection.sql._database import Database, RollbackFailed, UnreadableFile
from tests.projection.conftest import OpenWorkbench
from tests.projection.log import TOPICS, Log, finish, one_epoch, one_run

_DISPOSITIONS = "select disposition, reason, count(*) from runs.esper.records group by all order by all"


def test_a_log_becomes_tables(open_workbench: OpenWorkbench) -> None:
    """Every event of a run stands in its table with its place: fold a small run, count, look a row up."""
    log = Log()
    one_run(log)
    finish(log)
    bench = open_workbench(log)

    assert bench.fold() == len(log.source.records)

    counts = dict(bench.rows("select table_name, estimated_size from duckdb_tables() where database_name = 'runs'"))
    assert counts["run_states"] == counts["run_outcomes"] == counts["commands"] == counts["decisions"] == 3
    packet = next(record for record in log.source.records if record.topic == "system-state")
    place = (packet.partition, packet.offset)
    assert bench.rows("select topic_partition, record_offset, train_loss from run_states where epoch = 1") == [
        (*place, 2.0)
    ]
    assert bench.rows(_DISPOSITIONS) == [("applied", "", len(log.source.records) - 1)]


def test_a_restart_folds_nothing_twice(open_workbench: OpenWorkbench) -> None:
    """Offsets and event ids are durable: reopen the files, append the same events once more, fold again."""
    log = Log()
    one_run(log)
    bench = open_workbench(log)
    bench.fold()
    before = bench.contents("runs")
    bench.close()

    again = open_workbench(log)
    assert again.fold() == 0
    assert again.contents("runs") == before
    for record in list(log.source.records):
        log.append_raw(record)
    again.fold()

    applied = len(log.source.records) // 2 - 1
    assert again.rows(_DISPOSITIONS) == [("applied", "", applied), ("deduplicated", "", applied)]
    facts = {name: one for name, one in again.contents("runs").tables.items() if not name.startswith("esper.")}
    assert facts == {name: one for name, one in before.tables.items() if not name.startswith("esper.")}


def test_a_rebuild_equals_what_grew(open_workbench: OpenWorkbench) -> None:
    """Where batches ended does not show: fold in many small commits, rebuild in one, compare all table hashes."""
    log = Log()
    bench = open_workbench(log)
    one_run(log, "run-a")
    bench.fold()
    for epoch in range(4, 9):
        one_epoch(log, "run-a", epoch)
        bench.fold()
    one_run(log, "run-b")
    bench.fold()

    rebuilt = open_workbench(log, "rebuilt")
    rebuilt.fold()

    for one in bench.definitions:
        assert rebuilt.contents(one.name) == bench.contents(one.name)


def test_a_fold_can_end_at_offsets(open_workbench: OpenWorkbench) -> None:
    """A rebuild up to stored offsets equals the state of that time: remember it, append more, rebuild to it."""
    log = Log()
    one_run(log)
    bench = open_workbench(log)
    bench.fold()
    then = bench.contents("runs")
    one_run(log, "run-b")
    bench.fold()

    until = {"runs": {one.place: one.next_offset for one in then.progress}}
    rebuilt = open_workbench(log, "rebuilt", until=until)
    rebuilt.fold()

    assert rebuilt.contents("runs") == then
    assert rebuilt.contents("runs") != bench.contents("runs")
    assert rebuilt.contents("field_reports") == bench.contents("field_reports")


@pytest.mark.parametrize(
    ("change", "table"),
    [
        ("update run_states set val_loss = val_loss + 1e-12 where epoch = 2", "run_states"),
        ("update run_seed_states set metrics = map {'host_loss': 1.5} where epoch = 2", "run_seed_states"),
        ("delete from commands where epoch = 1", "commands"),
        ("insert into run_finishes select * replace (0.99 as accuracy) from run_finishes", "run_finishes"),
        ("update esper.records set disposition = 'filtered' where record_offset = 0", "esper.records"),
        ("update esper.progress set discarded = discarded + 1", "esper.progress"),
        ("create or replace view gates as select 1 as passed", "esper.definitions"),
        ("alter table run_claims add column more integer", "run_claims esper.definitions"),
    ],
)
def test_a_change_by_hand_shows_in_one_hash(open_workbench: OpenWorkbench, change: str, table: str) -> None:
    """Tables are compared one by one: change one thing in a file, and exactly its hash differs from the rebuild's."""
    log = Log()
    one_run(log)
    finish(log)
    bench, rebuilt = open_workbench(log), open_workbench(log, "rebuilt")
    bench.fold()
    rebuilt.fold()
    cursor = open_cursor(bench.database, bench.files["runs"].definition)
    cursor.execute(change)
    cursor.close()
    verdict = compared(bench.contents("runs"), rebuilt.contents("runs"))
    assert {entry["table"] for entry in verdict["tables"] if not entry["equal"]} == set(table.split())
    assert not verdict["equal"]


def _forged(log: Log) -> dict[str, Record]:
    """Return one bad record for each reason, none of them appended yet."""
    good = log.sign(ly.TrainingRunFailed(run_id="run-x", reason="forged"), key="run-x")
    assert good.value is not None
    strange = replace(good, headers=(good.headers[0], ("type", b"esper.leyline.v1.FieldReport")))
    stranger = Log(keyring=type(log.keyring).from_secrets(b"another secret that is long enough too"))
    bad_time = ly.TrainingRunFailed(run_id="run-x")
    undecodable = log.sign(bad_time, key="run-x")
    return {
        "UNSIGNED": replace(good, headers=good.headers[1:]),
        "BAD_SIGNATURE": replace(good, value=good.value + b"\x28\x01"),
        "EMPTY": replace(good, value=None),
        "UNKNOWN_KEY": stranger.sign(ly.TrainingRunFailed(run_id="run-x"), key="run-x"),
        "INCONSISTENT": replace(undecodable, key=None),
        "NOT_ALLOWED": _from_wrong_writer(log),
        "BAD_SIGNATURE type": strange,
    }


def _from_wrong_writer(log: Log) -> Record:
    """Return a record that is signed, by a source that may not write its topic."""
    from esper.leyline import SIGNATURE_HEADER, TYPE_HEADER, Envelope

    record = log.sign(ly.TrainingRunFailed(run_id="run-x"), key="run-x")
    message = ly.TrainingRunFailed.FromString(record.value or b"")
    message.meta.source = "tamiyo"
    value = message.SerializeToString()
    signature = log.keyring.sign(Envelope(record.topic, record.partition, "run-x", message.meta.type, value))
    headers = ((SIGNATURE_HEADER, signature), (TYPE_HEADER, message.meta.type.encode()))
    return replace(record, value=value, headers=headers)


def test_what_must_not_be_believed_is_discarded_and_told(open_workbench: OpenWorkbench) -> None:
    """Bad records leave no row, block no good one, get a reason and a letter: one of each kind between good ones."""
    log = Log()
    bad = _forged(log)
    for record in bad.values():
        log.append_raw(record)
    finish(log, "run-x")
    bench = open_workbench(log)

    assert bench.fold() == len(bad) + 1

    reasons = sorted(name.split()[0] for name in bad)
    assert sorted(one.reason for one in bench.letters.judged) == reasons
    assert bench.rows("select reason from runs.esper.records where disposition = 'discarded' order by 1") == [
        (reason,) for reason in reasons
    ]
    assert bench.rows("select count(*) from run_failures") == [(0,)]
    assert bench.rows("select run_id from run_finishes") == [("run-x",)]


def test_an_authentic_event_without_columns_is_undecodable(open_workbench: OpenWorkbench) -> None:
    """An impossible timestamp is the event's fault, not the fold's: it is discarded, its neighbours are applied."""
    log = Log()
    command = ly.AdaptationCommand(command_id="late", training_run_id="run-a")
    command.issued_at.seconds = 2**60
    log.append(command, key="run-a")
    one_epoch(log, "run-a", 1)
    bench = open_workbench(log)
    bench.fold()
    assert [one.reason for one in bench.letters.judged] == ["UNDECODABLE"]
    assert bench.rows("select count(*) from commands") == [(1,)]


def test_events_of_other_types_are_filtered(open_workbench: OpenWorkbench) -> None:
    """A topic's other messages are counted, not lost: the catalogue, if it took no compile jobs."""
    log = Log()
    log.append(ly.CompileStarted(kernel_id="k", attempt=1), key="k")
    log.append(ly.KernelCatalogUpdate(kernel_id="k", blueprint_id="BP001"), key="k")
    bench = open_workbench(log)
    file = bench.files["urza_catalog"]
    file.definition = replace(file.definition, types=file.definition.types - {full_name("CompileStarted")})
    bench.fold()
    sql = "select disposition, count(*) from urza_catalog.esper.records group by all order by all"
    assert bench.rows(sql) == [("applied", 1), ("filtered", 1)]
    assert bench.rows("select kernel_id from urza_catalog") == [("k",)]


_CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import esper.projection.files._file as file
from esper.core.settings import Settings
from esper.projection import load_definitions
from esper.projection.intake._admission import Admission
from esper.projection.files._contents import open_cursor, read_contents
from esper.projection.sql._database import Database, RollbackFailed, UnreadableFile
from esper.projection.records._decoder import ProtobufDecoder
from esper.projection.intake._folding import Folding
from esper.projection.intake._intake import LocalIntake
from tests.projection.log import TOPICS, Log, one_epoch, one_run

log = Log()
one_run(log)
definitions = load_definitions(Settings(_env_file=None), TOPICS)
folder = Path({folder!r})
database = Database(folder, memory_limit="512MB")
files = {{one.name: file.ProjectionFile(database, one, folder / f"{{one.name}}.duckdb") for one in definitions}}
wanted = {{kind for one in definitions for kind in one.types}}
admission = Admission(keyring=log.keyring, allowed=TOPICS.allowed, wanted=wanted, decoder=ProtobufDecoder())
folding = Folding(intake=LocalIntake(log.source, admission), files=files, catalog=TOPICS)
folding.start()
folding.step(0)
folding.step(0)
one_epoch(log, "run-a", 4)
file.ProjectionFile._before_commit = lambda self: self.definition.name != "runs" or os.kill(os.getpid(), signal.SIGKILL)
folding.step(0)
folding.step(0)
"""


def test_a_kill_before_the_commit_leaves_nothing_half(open_workbench: OpenWorkbench, tmp_path: Path) -> None:
    """Rows and offsets are one: SIGKILL a child between insert and commit, reopen its files, fold on, compare."""
    folder = tmp_path / "live"
    folder.mkdir()
    root = str(Path(__file__).resolve().parents[2])
    child = subprocess.run([sys.executable, "-c", _CHILD.format(root=root, folder=str(folder))], check=False)
    assert child.returncode == -signal.SIGKILL

    log = Log()
    one_run(log)
    whole = len(log.source.records)
    one_epoch(log, "run-a", 4)
    bench = open_workbench(log)
    assert bench.rows("select max(epoch), count(*) from run_states") == [(3, 3)]
    assert bench.rows("select sum(read) from runs.esper.progress") == [(whole - 1,)]
    assert bench.rows("select count(*) from runs.esper.records") == [(whole - 1,)]

    bench.fold()
    clean = open_workbench(log, "clean")
    clean.fold()
    assert bench.contents("runs") == clean.contents("runs")


def test_a_failing_statement_changes_nothing(open_workbench: OpenWorkbench) -> None:
    """A fold.sql that cannot take an event stops with its table's name, and the transaction leaves nothing."""
    log = Log()
    one_run(log)
    bench = open_workbench(log)
    file = bench.files["runs"]
    sound = file.definition
    broken = [
        replace(one, sql=one.sql.replace("meta.event_id", "meta.event_id::integer as event_id"))
        for one in file.definition.folds
    ]
    file.definition = replace(file.definition, folds=tuple(broken))

    with pytest.raises(OperationFailed, match="projection runs cannot fill its table"):
        bench.fold()

    assert bench.rows("select count(*) from runs.esper.records") == [(0,)]
    assert bench.rows("select sum(next_offset) from runs.esper.progress") == [(0,)]
    file.definition = sound
    bench.fold()
    assert bench.rows("select count(*) from run_states") == [(3,)]


def test_a_topic_made_anew_stops_the_fold(open_workbench: OpenWorkbench) -> None:
    """The id of a topic is part of an offset: make it anew before a start, and between a read and its commit."""
    log = Log()
    one_run(log)
    bench = open_workbench(log)
    bench.fold()
    one_epoch(log, "run-a", 4)
    bench.folding.start()
    assert bench.folding.step(0) == 0  # Read, not committed yet.
    log.source.lives["system-state"] = 1
    before = bench.contents("runs")

    with pytest.raises(IntegrityError, match="topic system-state") as caught:
        bench.folding.commit()
    assert "made again" in caught.value.cause
    assert bench.contents("runs") == before
    with pytest.raises(IntegrityError, match="topic system-state"):
        bench.folding.start()


def test_missing_history_stops_the_fold(open_workbench: OpenWorkbench) -> None:
    """Offsets that the log no longer holds are never skipped: cut the beginning, then the end."""
    log = Log()
    one_run(log)
    bench = open_workbench(log)
    bench.fold()
    place = next((record.topic, record.partition) for record in log.source.records if record.topic == "runs")

    log.source.low[place] = 100
    with pytest.raises(IntegrityError, match="were deleted before"):
        bench.folding.start()
    with pytest.raises(IntegrityError, match="its first 100 records are gone"):
        open_workbench(log, "other").folding.start()

    del log.source.low[place]
    log.source.records = [record for record in log.source.records if record.topic != "runs"]
    with pytest.raises(IntegrityError, match="the end was cut off"):
        bench.folding.start()


def test_large_backlogs_commit_in_parts(open_workbench: OpenWorkbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads are small and commits bounded: with a bound of 40 records a backlog takes several commits."""
    monkeypatch.setattr("esper.projection.intake._intake.READ_RECORDS", 10)
    monkeypatch.setattr("esper.projection.intake._intake.COMMIT_RECORDS", 40)
    assert COMMIT_RECORDS > 40
    log = Log()
    for number in range(5):
        one_run(log, f"run-{number}")
    bench = open_workbench(log)
    commits: list[int] = []
    fold = bench.files["runs"].fold

    def counting(batch: Batch, **options: object) -> int:
        commits.append(len(batch))
        return fold(batch, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.files["runs"], "fold", counting)
    assert bench.fold() == len(log.source.records) == 90
    assert commits == [40, 40, 10]


class _Hungry:
    """Runs out of memory a few times, then folds."""

    def __init__(self, file: ProjectionFile, failures: int) -> None:
        self._file = file
        self.failures = failures

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def fold(self, *arguments: object, **options: object) -> int:
        """Fail as DuckDB does, or fold."""
        if self.failures > 0:
            self.failures -= 1
            raise duckdb.OutOfMemoryException("Out of Memory Error: full")
        return self._file.fold(*arguments, **options)  # type: ignore[arg-type]


def test_what_could_not_be_rolled_back_is_before_the_next_try(
    open_workbench: OpenWorkbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory may be too short even for a rollback: leave a broken transaction open, and fold the same batch again."""
    log = Log()
    one_run(log)
    bench = open_workbench(log)
    file = bench.files["runs"]
    insert = file._insert_facts

    def broken(batch: Batch, decided: Decided) -> None:
        monkeypatch.setattr(file, "_insert_facts", insert)
        with pytest.raises(duckdb.Error):
            file._cursor.execute("insert into no_such_table values (1)")
        raise duckdb.OutOfMemoryException("Out of Memory Error: full")

    monkeypatch.setattr(file, "_insert_facts", broken)
    monkeypatch.setattr("esper.projection.sql._database.rollback", lambda _: None)
    assert bench.fold() == len(log.source.records)
    assert bench.rows("select count(*) from run_states") == [(3,)]


def test_what_cannot_be_rolled_back_makes_its_file_unreadable(
    open_workbench: OpenWorkbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a transaction that DuckDB could not take back may be seen: no second try on top of them, a new file."""
    log = Log()
    one_run(log)
    bench = open_workbench(log)
    file = bench.files["runs"]

    def hungry(_batch: Batch, _decided: Decided) -> None:
        raise duckdb.OutOfMemoryException("Out of Memory Error: full")

    def stuck(_cursor: object) -> None:
        raise RollbackFailed("Out of Memory Error: failed to allocate data of size 2.0 KiB")

    monkeypatch.setattr(file, "_insert_facts", hungry)
    monkeypatch.setattr("esper.projection.sql._database.rollback", stuck)
    with pytest.raises(UnreadableFile, match="could not be rolled back") as caught:
        bench.fold()
    assert caught.value.path == file.path
    monkeypatch.undo()


def test_the_fold_goes_before_queries(open_workbench: OpenWorkbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory the fold ends the queries and tries again, and gives up after five tries."""
    log = Log()
    one_run(log)
    bench = open_workbench(log)
    relieved: list[int] = []
    monkeypatch.setattr(bench.folding, "_relieve", lambda: relieved.append(1) or len(relieved))
    hungry = _Hungry(bench.files["runs"], failures=2)
    bench.files["runs"] = hungry  # type: ignore[assignment]
    bench.fold()
    assert len(relieved) == 2
    assert bench.rows("select count(*) from run_states") == [(3,)]

    hungry.failures = 99
    one_epoch(log, "run-a", 4)
    with pytest.raises(OperationFailed, match="projection runs cannot be folded"):
        bench.fold()


@pytest.mark.parametrize("content", [b"", b"no database", os.urandom(5000)])
def test_a_file_that_is_no_database_is_unreadable(
    content: bytes, tmp_path: Path, definitions: tuple[Definition, ...]
) -> None:
    """Damage is told apart from a lock: open files with wrong content."""
    path = tmp_path / "runs.duckdb"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile) as caught:
        ProjectionFile(Database(tmp_path, memory_limit="100MB"), definitions[1], path)
    assert caught.value.path == path


def test_a_full_disk_is_no_damage(open_workbench: OpenWorkbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is not thrown away because the disk is full: let a commit fail as DuckDB does then, and go on after."""
    log = Log()
    one_run(log)
    bench = open_workbench(log)

    def full(self: ProjectionFile) -> None:
        raise duckdb.IOException(f"IO Error: Could not write to file {self.path}: {os.strerror(errno.ENOSPC)}")

    with monkeypatch.context() as patch:
        patch.setattr(ProjectionFile, "_before_commit", full)
        with pytest.raises(OperationFailed, match="Free space"):
            bench.fold()
    bench.fold()
    assert bench.rows("select count(*) from run_states") == [(3,)]


def test_a_file_of_another_version_is_refused(tmp_path: Path, definitions: tuple[Definition, ...]) -> None:
    """A file says which version it holds, whatever its name: open it as another version."""
    path = tmp_path / "runs.duckdb"
    ProjectionFile(Database(tmp_path, memory_limit="100MB"), definitions[1], path).close()
    other = replace(definitions[1], version="0" * 16)
    with pytest.raises(UnreadableFile, match="cannot be read"):
        ProjectionFile(Database(tmp_path, memory_limit="100MB"), other, path)


def test_damage_inside_a_file_is_found_while_folding(open_workbench: OpenWorkbench, tmp_path: Path) -> None:
    """A file that opens and breaks later is unreadable too: overwrite its blocks on disk, reopen, fold."""
    log = Log()
    for number in range(20):
        one_run(log, f"run-{number}")
    bench = open_workbench(log)
    bench.fold()
    bench.close()
    path = tmp_path / "live" / "runs.duckdb"
    content = bytearray(path.read_bytes())
    for start in range(3 * 4096 + 262_144, len(content), 4096):
        content[start : start + 64] = b"\xff" * 64
    path.write_bytes(content)

    one_run(log, "run-more")

    def open_and_fold() -> None:
        open_workbench(log).fold()

    with pytest.raises(UnreadableFile) as caught:
        open_and_fold()
    assert caught.value.path == path


def test_every_damaged_block_is_found_or_unused(
    open_workbench: OpenWorkbench, tmp_path: Path, definitions: tuple[Definition, ...]
) -> None:
    """No damage reads as content: spoil a file's blocks one at a time; it will not open, or tables are unreadable."""
    log = Log()
    for number in range(20):
        one_run(log, f"run-{number}")
    bench = open_workbench(log)
    bench.fold()
    sound = bench.contents("runs")
    bench.close()
    content = (tmp_path / "live" / "runs.duckdb").read_bytes()
    runs, unreadable = next(one for one in definitions if one.name == "runs"), set()
    for start in range(3 * 4096, len(content), 262_144):
        spoilt = tmp_path / f"spoilt-{start}.duckdb"
        spoilt.write_bytes(content[:start] + bytes(64) + content[start + 64 :])
        database = Database(tmp_path, memory_limit="200MB")
        try:
            ProjectionFile(database, runs, spoilt)
            found = read_contents(database, runs)
        except (UnreadableFile, duckdb.Error):
            continue
        finally:
            database.close()
        for table, one in found.tables.items():
            assert one == sound.tables[table] or one.hash == "unreadable"
            unreadable |= {table} if one.hash == "unreadable" else set()
    assert unreadable


def test_the_catalogue_of_topics_is_whole() -> None:
    """The log of these tests carries every topic: compare its partitions with the files'."""
    assert Log().source.partitions == {spec.name: spec.partitions for spec in TOPICS}


def test_numbers_up_to_the_last_one_are_folded(open_workbench: OpenWorkbench) -> None:
    """A sequence has 64 bits, all of which a producer may use: the last ones are folded, and told from copies."""
    log = Log()
    for number, sequence in enumerate((1, 2**63 - 1, 2**63, 2**64 - 1)):
        message = ly.SystemStatePacket(training_run_id="run-a", current_epoch=number, attempt=1)
        log.append_raw(log.sign(message, key="run-a", sequence=sequence))
    bench = open_workbench(log)
    assert bench.fold() == 4
    assert bench.rows("select epoch from run_states order by all") == [(0,), (1,), (2,), (3,)]
    log.append_raw(log.source.records[-1])
    bench.fold()
    assert bench.rows("select sum(deduplicated) from runs.esper.progress") == [(1,)]
