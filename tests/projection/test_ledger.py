"""Tests of dispositions: every record has one, and the counts add up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from esper.leyline import BadRecord, Record
from esper.leyline import messages as ly
from esper.projection._admission import Judged
from esper.projection._ledger import (
    Disposition,
    Progress,
    advance,
    classify,
    event_key,
    highest_sequences,
    ledger_table,
)

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
            type_name, producer_id = draw(st.sampled_from(["mine", "other"])), draw(st.sampled_from("xyz"))
            sequence = draw(st.integers(1, 20))
            judged.append(Judged(record, type_name, event_id, attempt, 0, producer_id=producer_id, sequence=sequence))
        else:
            judged.append(Judged(record, bad=_BAD))
    return judged


def _progress() -> dict[tuple[str, int], Progress]:
    return {("runs", partition): Progress("runs", partition, "id", 0, 0) for partition in (0, 1)}


@given(_records())
def test_every_record_has_one_disposition(judged: list[Judged]) -> None:
    """Whatever is read, the ledger has a line for each offset and the counts add up to what was read."""
    entries = classify(judged, types={"mine"}, known=set(), high={})
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
    whole = classify(judged, types={"mine"}, known=set(), high={})
    first = classify(judged[:cut], types={"mine"}, known=set(), high={})
    applied = {event_key(entry.judged) for entry in first if entry.disposition is Disposition.APPLIED}
    second = classify(judged[cut:], types={"mine"}, known=applied, high=highest_sequences(first))
    assert first + second == whole


def _line(*events: tuple[str, str, int]) -> list[str]:
    """Return the dispositions of (type, event id, sequence) of one producer."""
    judged = [
        Judged(Record("runs", 0, offset, b"", b""), kind, event_id, 1, 0, producer_id="p", sequence=sequence)
        for offset, (kind, event_id, sequence) in enumerate(events)
    ]
    return [entry.disposition.value for entry in classify(judged, types={"mine"}, known=set(), high={})]


def test_two_attempts_are_two_events() -> None:
    """Attempts name their events alike on purpose: both are facts, a third copy of one of them is none."""
    judged = [
        Judged(Record("runs", 0, offset, b"", b""), "mine", "same", attempt, 0, producer_id="p", sequence=offset + 1)
        for offset, attempt in enumerate((1, 2, 1))
    ]
    entries = classify(judged, types={"mine"}, known=set(), high={})
    assert [entry.disposition.value for entry in entries] == ["applied", "applied", "deduplicated"]


def test_a_sequence_that_was_there_is_not_applied_again() -> None:
    """As for a consumer, a producer's sequences grow: a new event with an old one is none, and copies move nothing."""
    applied, filtered, deduplicated = "applied", "filtered", "deduplicated"
    assert _line(("mine", "a", 1), ("mine", "b", 2), ("mine", "c", 1)) == [applied, applied, deduplicated]
    assert _line(("mine", "a", 1), ("other", "b", 5), ("mine", "c", 2)) == [applied, filtered, applied]
    # What was no new event moves nothing: the genuine second one goes on.
    assert _line(("mine", "a", 1), ("mine", "a", 9), ("mine", "b", 2)) == [applied, deduplicated, applied]
