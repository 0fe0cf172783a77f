"""What a seal holds, what it refuses, and that a kill at any point leaves nothing half-written."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path

import fastavro
import pytest

from esper.core.errors import IntegrityError
from esper.core.rng import derive_seed
from esper.projection import MemorySource
from esper.projection.archive import survey
from esper.projection.archive._segments import read_segment
from tests.campaigns import WHOLE
from tests.projection.archive.sealed import Archived

SEED = 20_261_122
KILLS = 150 if WHOLE else 20


def contents(archived: Archived) -> dict[object, list[object]]:
    """Return every record of an archive by partition."""
    found = survey(archived.layout, public_key=archived.key.public_key)
    return {
        place: [record for one in segments for record in read_segment(one)]
        for place, segments in found.segments.items()
    }


def log_of(archived: Archived) -> dict[object, list[object]]:
    """Return every record of the log by partition."""
    found: dict[object, list[object]] = {}
    for record in archived.log.source.records:
        found.setdefault((record.topic, record.partition), []).append(record)
    return found


def test_seals_add_up_to_the_log(tmp_path: Path) -> None:
    """Goal: no record is lost or doubled between seals. Method: seal thrice while the log grows, compare all."""
    archived = Archived(tmp_path)
    for number in range(3):
        archived.write_run(f"run-{number}")
        sealed = archived.seal()
        assert (sealed.number, sealed.complete, sealed.new) == (number + 1, True, True)
    assert not archived.seal().new
    assert contents(archived) == log_of(archived)
    document = archived.verify().document()
    assert document["ok"], document["bad"]
    assert (document["seals"], document["blobs"]) == (3, 3)
    assert document["records"] == len(archived.log.source.records)


def test_any_avro_reader_reads_a_segment(tmp_path: Path) -> None:
    """Goal: the archive outlives Esper. Method: read a file by fastavro alone, with the schema that it holds."""
    archived = Archived(tmp_path)
    archived.write_run("run-0")
    archived.seal(codec="deflate")
    path = next((archived.layout.segments / "run-requests").rglob("*.avro"))
    with path.open("rb") as file:
        rows = list(fastavro.reader(file))
    assert [(row["offset"], row["key"], row["timestamp_type"]) for row in rows] == [(0, b"run-0", 2)]
    assert {header["name"] for header in rows[0]["headers"]} == {"signature", "type"}


def test_one_topic_can_be_sealed_alone(tmp_path: Path) -> None:
    """Goal: `--topic` seals no other, and is no base of a restore. Method: seal one, look, then seal all."""
    archived = Archived(tmp_path)
    archived.write_run("run-0")
    assert not archived.seal("telemetry").complete
    found = survey(archived.layout, public_key=archived.key.public_key)
    assert {topic for topic, _ in found.segments} == {"telemetry"}
    assert found.last_complete is None
    assert archived.seal().complete
    assert contents(archived) == log_of(archived)


def test_another_log_is_not_sealed_on(tmp_path: Path) -> None:
    """Goal: an archive is of one log. Method: a topic made anew, one cut, one that lost records; each stops."""
    for spoil, words in (
        (lambda source: source.lives.update({"runs": 1}), "deleted and made again"),
        (lambda source: source.records.clear(), "its end was cut off"),
        (_lose_unsealed, "were deleted before they were sealed"),
    ):
        archived = Archived(tmp_path / words.replace(" ", "-"))
        archived.write_run("run-0")
        archived.seal()
        spoil(archived.log.source)
        with pytest.raises(IntegrityError, match=words):
            archived.seal()
        assert archived.verify().ok


def _lose_unsealed(source: MemorySource) -> None:
    ends = {(one.topic, one.partition): one.offset + 1 for one in source.records}
    source.low.update({place: end + 5 for place, end in ends.items() if place[0] == "runs"})
    source.records[:] = [one for one in source.records if one.topic != "runs"]


def test_what_expired_unsealed_is_a_gap(tmp_path: Path) -> None:
    """Goal: a loss is stated, not hidden. Method: let telemetry that was never sealed expire; look at the manifest."""
    archived = Archived(tmp_path)
    archived.write_run("run-0")
    archived.seal()
    archived.write_run("run-1")
    source = archived.log.source
    source.low[("telemetry", 0)] = 5
    source.records[:] = [one for one in source.records if one.topic != "telemetry" or one.offset >= 5]
    archived.seal()
    found = survey(archived.layout, public_key=archived.key.public_key)
    assert [gap for one in found.segments[("telemetry", 0)] for gap in one.manifest.gaps] == [(3, 5)]
    assert archived.verify().ok


def _seal_and_die(root: Path, archived: Archived, after: int) -> None:
    """Seal; end this process by SIGKILL at the given file operation inside the archive."""
    count = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in ("open", "os.rename", "os.remove") and str(root) in str(arguments[0]):
            count += 1
            if count == after:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    archived.seal()
    os._exit(0)


@pytest.mark.campaign
def test_a_kill_at_any_point_leaves_nothing_half_written(tmp_path: Path) -> None:
    """Goal: a seal that dies is gone on with. Method: SIGKILL at random file operations; verify, seal, compare."""
    killed = 0
    chooser = random.Random(derive_seed(SEED, "kills"))  # noqa: S311 - a seeded campaign
    archived = Archived(tmp_path)
    archived.write_run("run-0")
    assert archived.key.public_key
    for number in range(KILLS):
        archived.write_run(f"run-{number + 1}")
        after = chooser.randint(1, 160)
        child = multiprocessing.get_context("fork").Process(
            target=_seal_and_die, args=(archived.layout.root, archived, after)
        )
        child.start()
        child.join(60)
        killed += child.exitcode == -signal.SIGKILL
        verdict = archived.verify()
        assert verdict.ok, f"seed {SEED}, kill {number} at operation {after}: {verdict.faults}"
        if number % 5 == 4:
            archived.seal()
            assert contents(archived) == log_of(archived)
    archived.seal()
    assert contents(archived) == log_of(archived)
    assert not list(archived.layout.root.rglob(".*.tmp"))
    assert killed >= KILLS // 2, "the kills must fall into the work"
