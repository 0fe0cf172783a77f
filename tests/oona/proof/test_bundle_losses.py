"""Bundles and a log that lost records: nothing is exported of it, and nothing can be left out of a bundle unsaid."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from esper.core._log_key import open_log_key
from esper.core.errors import IntegrityError
from esper.oona import Fabric
from esper.oona._cluster import Position
from esper.oona.proof import Bounds, ListLog, _prove, export_from_cluster
from esper.oona.proof._kafka import KafkaLog
from esper.oona.topics._partitioner import partition_for
from tests.oona.proof.recorded import RUNS, Recorded
from tests.oona.proof.test_bundle import bundle_of, checked, export_of, sealed

PLACE: Position = ("runs", partition_for(RUNS[0], 8))


def with_records(recorded: Recorded, keep: slice) -> Recorded:
    """Return the log with a part of the run's records in `runs`; what is cut off is gone as Kafka forgets it."""
    return recorded.with_log({**recorded.log.partitions, PLACE: recorded.log.partitions[PLACE][keep]})


def lines_of(recorded: Recorded, blobs: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's bundle, the seal left out."""
    return [json.loads(line) for line in bundle_of(recorded, blobs).splitlines()][:-1]


def without_section(lines: list[dict[str, Any]], place: Position) -> list[dict[str, Any]]:
    """Return lines without the section of one partition."""
    left, inside = [], False
    for line in lines:
        if "record" not in line and "hashes" not in line:
            section = line.get("partition", {})
            inside = (section.get("topic"), section.get("partition")) == place
        if not inside:
            left.append(line)
    assert len(left) < len(lines)
    return left


@pytest.mark.parametrize("keep", [slice(0, 0), slice(0, -1)], ids=["emptied", "cut"])
def test_run_of_a_log_that_lost_signed_records_is_refused(recorded: Recorded, tmp_path: Path, keep: slice) -> None:
    """A partition that ends before what is signed is not passed over: empty or cut `runs`, export run and range."""
    lost = with_records(recorded, keep)
    signed = len(recorded.log.partitions[PLACE])
    held = len(lost.log.partitions[PLACE])
    told = f"ends before offset {held}, checkpoint [0-9]+ signed it up to offset {signed - 1}.*`esper verify`"
    for export in (
        lambda: export_of(lost, tmp_path).run(RUNS[0], io.BytesIO()),
        lambda: export_of(lost, tmp_path).range(f"{PLACE[0]}-{PLACE[1]}:0-1", io.BytesIO()),
    ):
        with pytest.raises(IntegrityError) as caught:
            export()
        assert caught.value.exit_code == 4
        assert str(caught.value).startswith(f"{PLACE[0]}-{PLACE[1]} ")
        assert re.search(told, str(caught.value))


def test_lost_beginning_of_a_topic_that_keeps_everything_is_refused(recorded: Recorded, tmp_path: Path) -> None:
    """Truth has no low watermark above 0: drop the first records of `runs`, and export."""
    with pytest.raises(IntegrityError, match="is not what was signed") as caught:
        bundle_of(with_records(recorded, slice(3, None)), tmp_path)
    assert "begins at offset 3" in caught.value.cause


def test_topic_that_was_made_again_is_refused(recorded: Recorded, tmp_path: Path) -> None:
    """Another topic of the same name proves nothing: give `runs` another id, and export."""
    ids = {**recorded.log.topic_ids, PLACE[0]: "made-again"}
    with pytest.raises(IntegrityError) as caught:
        bundle_of(replace(recorded, log=replace(recorded.log, topic_ids=ids)), tmp_path)
    assert "made-again" in caught.value.cause


def test_checkpoint_that_comes_during_an_export_is_no_loss(recorded: Recorded, tmp_path: Path) -> None:
    """The housekeeper goes on meanwhile: let the log grow, checkpoints too, between two looks at its ends."""

    class Growing(ListLog):
        """Shows its first look a log without its end."""

        looks = 0

        def bounds(self) -> Mapping[Position, Bounds]:
            """Return the ends; the first time those of the moment before the last checkpoint."""
            self.looks += 1
            found = dict(super().bounds())
            if self.looks == 1:
                found[PLACE] = replace(found[PLACE], high=1)
            return found

    growing = Growing(recorded.log.partitions, recorded.log.topic_ids, passing=recorded.log.passing)
    assert checked(bundle_of(replace(recorded, log=growing), tmp_path), recorded.public_key).ok


def test_refused_export_leaves_no_file(proving: Fabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal leaves nothing half-written: read a real log as if `runs` had lost its records, and export."""

    class Lost(KafkaLog):
        """A log whose `runs` were emptied."""

        def bounds(self) -> Mapping[Position, Bounds]:
            """Return the ends, those of `runs` as Kafka recovers a partition whose only segment was cut."""
            return {
                place: replace(found, high=0) if place == PLACE else found for place, found in super().bounds().items()
            }

    monkeypatch.setattr(_prove, "KafkaLog", Lost)
    with pytest.raises(IntegrityError):
        export_from_cluster(proving, tmp_path / "out.jsonl", run_id=RUNS[0])
    assert not list(tmp_path.iterdir())


def test_section_that_was_removed_is_found_by_the_public_key(recorded: Recorded, tmp_path: Path) -> None:
    """Only the log key seals: remove a section and all that is said of it, seal with another key, verify."""
    lines = without_section(lines_of(recorded, tmp_path), PLACE)
    lines = [line for line in lines if line.get("searched", {}).get("topic") != PLACE[0]]
    verdict = checked(sealed(lines, open_log_key(tmp_path)), recorded.public_key)
    assert "the seal was not made with the log key" in {one.detail for one in verdict.bad}


@pytest.mark.parametrize("unsaid", ["nothing", "statement", "end"])
def test_section_that_was_removed_is_found_under_a_true_seal(recorded: Recorded, tmp_path: Path, unsaid: str) -> None:
    """Sections are held against statements and checkpoints: remove one, and what is said of it, seal, verify."""
    lines = without_section(lines_of(recorded, tmp_path), PLACE)
    place = {"topic": PLACE[0], "partition": PLACE[1]}
    mine = [index for index, line in enumerate(lines) if place.items() <= line.get("searched", {}).items()]
    assert len(mine) == 1
    if unsaid == "statement":
        del lines[mine[0]]
    elif unsaid == "end":
        lines[mine[0]]["searched"] |= {"end": 0, "shown": 0}
    verdict = checked(sealed(lines, recorded.key), recorded.public_key)
    kinds = {(one.topic, one.kind.value) for one in verdict.bad}
    assert kinds == {("bundle", "bundle") if unsaid == "statement" else ("runs", "truncated")}


@pytest.mark.parametrize(
    "alter",
    [{"partition": PLACE[1] + 1 if PLACE[1] < 7 else 0}, {"partitions": PLACE[1] + 1}, {"topic_id": "another"}],
    ids=["elsewhere", "fewer", "replaced"],
)
def test_false_statement_about_the_search_is_found(
    recorded: Recorded, tmp_path: Path, alter: dict[str, object]
) -> None:
    """A statement must agree with key and checkpoints: alter one, seal, verify."""
    lines = lines_of(recorded, tmp_path)
    for line in lines:
        if line.get("searched", {}).get("topic") == PLACE[0]:
            line["searched"] |= alter
    assert not checked(sealed(lines, recorded.key), recorded.public_key).ok


@pytest.mark.parametrize("subject", [{}, {"run_id": 1}, {"run_id": "\ud800"}, {"run_id": RUNS[0], "range": "x"}])
def test_subject_that_is_none_is_a_verdict(recorded: Recorded, tmp_path: Path, subject: dict[str, object]) -> None:
    """No subject escapes the search for it, or breaks the checker: write another one, seal, verify."""
    first, *others = lines_of(recorded, tmp_path)
    verdict = checked(sealed([first | {"subject": subject}, *others], recorded.key), recorded.public_key)
    assert any("the subject is n" in one.detail for one in verdict.bad)


def test_what_was_not_searched_is_not_claimed(recorded: Recorded, tmp_path: Path) -> None:
    """A verdict names what no search covers: export, verify, read its limits."""
    verdict = checked(bundle_of(recorded, tmp_path), recorded.public_key)
    assert verdict.ok
    assert "topics that were not searched for the subject: operations, telemetry" in verdict.document()["not_claimed"]
