"""Tests of dispositions: every record has one, and the counts add up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from esper.leyline import BadRecord, Record
from esper.leyline import messages as ly
from esper.projection._admission import Judged
from esper.projection._ledger import Disposition, Progress, advance, classify, event_key, ledger_table

_BAD = BadRecord(ly.DEAD_LETTER_REASON_UNSIGNED, "no signature")


@st.composite
def _records(draw: st.DrawFn) -> list[Judged]:
    """Draw records of two partitions, with gaps, duplicates, two attempts, other types and bad ones."""
    judged, ends = [], {0: 0, 1: 0}
    for _ in range(draw(st.integers(0, 20))):
        partition = draw(st.integers(0, 1))
        offset = ends[partition] + draw(st.integers(0, 2))
        ends[partition] = offset + 1
        record = Record("runs", partition, offset, b"key", b"value")
        if draw(st.booleans()):
            event_id, attempt = draw(st.sampled_from("abc")), draw(st.sampled_from([None, 1, 2]))
            judged.append(Judged(record, draw(st.sampled_from(["mine", "other"])), event_id, attempt, row=0))
        else:
            judged.append(Judged(record, bad=_BAD))
    return judged


def _progress() -> dict[tuple[str, int], Progress]:
    return {("runs", partition): Progress("runs", partition, "id", 0, 0) for partition in (0, 1)}


@given(_records())
def test_every_record_has_one_disposition(judged: list[Judged]) -> None:
    """Whatever is read, the ledger has a line for each offset and the counts add up to what was read."""
    entries = classify(judged, types={"mine"}, known=set())
    after = {**_progress(), **advance(_progress(), entries)}

    assert [entry.judged for entry in entries] == judged
    assert sum(one.read for one in after.values()) == len(judged)
    for one in after.values():
        assert one.balanced
        mine = [entry for entry in entries if entry.judged.place == one.place]
        assert one.applied == sum(entry.disposition is Disposition.APPLIED for entry in mine)
        assert one.next_offset == max((entry.judged.record.offset + 1 for entry in mine), default=0)
    assert ledger_table(entries).num_rows == len(judged)


@given(_records(), st.integers(0, 20))
def test_a_cut_anywhere_changes_nothing(judged: list[Judged], cut: int) -> None:
    """Dispositions do not depend on where a batch ends: fold at once, and in two parts that know of each other."""
    whole = classify(judged, types={"mine"}, known=set())
    first = classify(judged[:cut], types={"mine"}, known=set())
    applied = {event_key(entry.judged) for entry in first if entry.disposition is Disposition.APPLIED}
    second = classify(judged[cut:], types={"mine"}, known=applied)
    assert first + second == whole


def test_two_attempts_are_two_events() -> None:
    """Attempts name their events alike on purpose: both are facts, a third copy of one of them is none."""
    records = [Record("runs", 0, offset, b"", b"") for offset in range(3)]
    judged = [Judged(record, "mine", "same", attempt, 0) for record, attempt in zip(records, (1, 2, 1), strict=True)]
    entries = classify(judged, types={"mine"}, known=set())
    assert [entry.disposition.value for entry in entries] == ["applied", "applied", "deduplicated"]
