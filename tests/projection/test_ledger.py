"""Tests of dispositions of single records; whole batches are held against them in `columnar`."""

from __future__ import annotations

from esper.leyline import Record
from esper.projection.records._judged import Judged
from esper.projection.records._ledger import classify


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
