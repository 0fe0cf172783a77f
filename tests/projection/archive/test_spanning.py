"""Archive and live log read as one: the same records, and the same tables, as the whole log gives."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from esper.core.errors import IntegrityError
from esper.core.rng import derive_seed
from esper.leyline import Record
from esper.oona import Position
from esper.projection import MemorySource, RecordSource
from esper.projection.archive import SpanningSource, survey
from esper.projection.archive._marks import ArchiveMarks
from tests.projection.archive.sealed import Archived
from tests.projection.conftest import OpenWorkbench
from tests.projection.log import Log

SEED = 20_261_122


def read_all(source: RecordSource, positions: dict[Position, int]) -> dict[Position, list[Record]]:
    """Return what a source gives from these positions to the ends."""
    source.seek(positions)
    ends = {place: source.state()[place].high for place in positions}
    found: dict[Position, list[Record]] = {place: [] for place in positions}
    for _ in range(10_000):
        for record in source.read(0, 7).records():
            found[(record.topic, record.partition)].append(record)
        if all(source.positions()[place] >= end for place, end in ends.items()):
            return found
    raise AssertionError(f"the ends {ends} were not reached: {source.positions()}")


def lose(source: MemorySource, before: dict[Position, int]) -> MemorySource:
    """Return a copy of a log that lost what stood before these offsets."""
    kept = [one for one in source.records if one.offset >= before.get((one.topic, one.partition), 0)]
    return MemorySource(source.partitions, kept, low={place: end for place, end in before.items() if end})


def grown(root: Path) -> Archived:
    """Return a log of which the first two thirds are sealed."""
    archived = Archived(root)
    for number in range(2):
        archived.write_run(f"run-{number}")
        archived.seal()
    archived.write_run("run-2")
    return archived


@pytest.mark.parametrize("cold", [False, True])
def test_every_offset_comes_once(tmp_path: Path, cold: bool) -> None:
    """Goal: no record is lost or doubled at the joint. Method: random losses and starts; compare with the whole log."""
    archived = grown(tmp_path)
    found = survey(archived.layout, public_key=archived.key.public_key)
    whole = archived.log.source
    chooser = random.Random(derive_seed(SEED, "starts"))  # noqa: S311 - a seeded choice
    for number in range(40):
        sealed = {place: one.next_offset for place, one in found.partitions.items()}
        live = lose(whole, {place: chooser.randint(0, end) for place, end in sealed.items()})
        source = SpanningSource(live, found, cold=cold)
        assert {place: (one.low, one.high) for place, one in source.state().items()} == {
            place: (one.low, one.high) for place, one in whole.state().items()
        }
        starts = {place: chooser.randint(0, one.high) for place, one in whole.state().items()}
        expected = {
            place: [one for one in whole.records if (one.topic, one.partition) == place and one.offset >= start]
            for place, start in starts.items()
        }
        assert read_all(source, starts) == expected, f"seed {SEED}, choice {number}"


@pytest.mark.parametrize("cold", [False, True])
def test_replay_over_archive_and_live_log_gives_the_same_tables(
    tmp_path: Path, open_workbench: OpenWorkbench, cold: bool
) -> None:
    """Goal: a rebuild needs the live log no longer. Method: delete what is sealed, fold both, compare table hashes."""
    archived = grown(tmp_path / "home")
    whole = open_workbench(archived.log, "whole")
    whole.fold()
    found = survey(archived.layout, public_key=archived.key.public_key)
    live = lose(archived.log.source, {place: one.next_offset for place, one in found.partitions.items()})
    spanning = Log(keyring=archived.log.keyring)
    spanning.source = SpanningSource(live, found, cold=cold)  # type: ignore[assignment]
    again = open_workbench(spanning, f"again-{cold}")
    assert again.fold() == whole.fold() + len(read_topics(whole, archived))
    for definition in whole.definitions:
        mine, theirs = again.contents(definition.name), whole.contents(definition.name)
        assert mine == theirs, definition.name


def read_topics(bench: object, archived: Archived) -> list[Record]:
    """Return the records that some projection reads."""
    topics = {topic for one in bench.definitions for topic in one.topics}  # type: ignore[attr-defined]
    return [one for one in archived.log.source.records if one.topic in topics]


def test_a_log_without_its_beginning_is_refused_where_the_archive_does_not_reach(tmp_path: Path) -> None:
    """Goal: a hole is never passed over. Method: let the live log begin after the archive's end."""
    archived = grown(tmp_path)
    found = survey(archived.layout, public_key=archived.key.public_key)
    place = next(place for place, one in found.partitions.items() if place[0] == "runs" and one.next_offset)
    live = lose(archived.log.source, {place: found.partitions[place].next_offset + 1})
    assert SpanningSource(live, found).state()[place].low == found.partitions[place].next_offset + 1


def test_segments_of_another_topic_are_not_read(tmp_path: Path) -> None:
    """Goal: a topic that was made again has no past. Method: give the live topic another life."""
    archived = grown(tmp_path)
    found = survey(archived.layout, public_key=archived.key.public_key)
    live = lose(archived.log.source, {("telemetry", 0): 2})
    live.lives["telemetry"] = 1
    assert SpanningSource(live, found).state()[("telemetry", 0)].low == 2


def test_an_altered_segment_is_not_read(tmp_path: Path) -> None:
    """Goal: no record is given out that was not sealed. Method: flip a bit, read."""
    archived = grown(tmp_path)
    found = survey(archived.layout, public_key=archived.key.public_key)
    path = found.segments[("telemetry", 0)][0].path
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    source = SpanningSource(archived.log.source, found, cold=True)
    source.seek({("telemetry", 0): 0})
    with pytest.raises(IntegrityError, match="not what was sealed"):
        source.read(0, 10)


def test_marks_end_before_the_first_unsound_segment(tmp_path: Path) -> None:
    """Goal: retention passes only what is certain. Method: marks of a sound archive; damage a segment; look again."""
    archived = grown(tmp_path)
    found = survey(archived.layout, public_key=archived.key.public_key)
    marks = ArchiveMarks(archived.layout.root, public_key=archived.key.public_key)
    expiring = frozenset({"telemetry"})
    assert marks.of(expiring) == {("telemetry", 0): 6}
    second = found.segments[("telemetry", 0)][1]
    whole = second.path.read_bytes()
    second.path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert marks.of(expiring) == {("telemetry", 0): second.manifest.first_offset}
    second.path.unlink()
    assert marks.of(expiring) == {("telemetry", 0): 0}, "an archive that contradicts itself vouches for nothing"
    second.path.write_bytes(whole)
    assert marks.of(expiring) == {("telemetry", 0): 6}
