"""Tests that whole batches get the dispositions that single records get, and that nothing known is forgotten."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.leyline import BadRecord, Record
from esper.leyline import messages as ly
from esper.projection.columnar import Batch, KnownEvents, decide, ledger_rows, progressed
from esper.projection.columnar._batch import BAD
from esper.projection.columnar._dispositions import DISPOSITIONS, Decided
from esper.projection.columnar._known import fingerprints, place_word
from esper.projection.records._judged import Judged
from esper.projection.records._ledger import Disposition, ProducerKey, Progress, classify, event_key, producer_key

_BAD = BadRecord(ly.DEAD_LETTER_REASON_UNSIGNED, "no signature")


@st.composite
def _records(draw: st.DrawFn) -> list[Judged]:
    """Draw records of two partitions, with gaps, duplicates, two attempts, other types and bad ones."""
    judged, ends = [], {0: 0, 1: 0}
    often_new = draw(st.booleans())
    for number in range(draw(st.integers(0, 20))):
        partition = draw(st.integers(0, 1))
        offset = ends[partition] + draw(st.integers(0, 2))
        ends[partition] = offset + 1
        record = Record("runs", partition, offset, None, None)
        if draw(st.integers(0, 5)):
            event_id = f"{number:032d}" if often_new else draw(st.sampled_from(["a" * 32, "b" * 32, "Ω" * 32]))
            sequence = number + 1 if often_new else draw(st.integers(1, 20))
            judged.append(
                Judged(
                    record,
                    draw(st.sampled_from(["mine", "other"])),
                    event_id,
                    draw(st.sampled_from([None, 1, 2])),
                    0,
                    producer_id=draw(st.sampled_from("xyz")),
                    sequence=sequence,
                )
            )
        else:
            judged.append(Judged(record, bad=_BAD))
    return judged


def _batch(judged: list[Judged]) -> Batch:
    """Put single records together as columns, without the code that does so for real ones."""
    places = sorted({one.place for one in judged})
    kinds = sorted({one.type_name for one in judged if one.bad is None})
    producers = sorted({one.producer_id for one in judged})
    return Batch(
        places,
        np.array([places.index(one.place) for one in judged], dtype=np.int32),
        np.array([one.record.offset for one in judged], dtype=np.int64),
        np.zeros(len(judged), dtype=np.int64),
        kinds,
        np.array([BAD if one.bad else kinds.index(one.type_name) for one in judged], dtype=np.int32),
        np.array([-1 if one.row is None else one.row for one in judged], dtype=np.int64),
        pa.array([one.event_id for one in judged], pa.string()),
        pa.array([one.attempt for one in judged], pa.uint32()),
        producers,
        np.array([producers.index(one.producer_id) for one in judged], dtype=np.int32),
        np.array([one.sequence for one in judged], dtype=np.uint64),
        {index: one for index, one in enumerate(judged) if one.bad},
        {},
    )


class _File:
    """What a projection remembers between two batches."""

    def __init__(self) -> None:
        self.known, self.high = KnownEvents(), dict[ProducerKey, int]()
        self.applied: set[object] = set()

    def fold(self, judged: list[Judged]) -> Decided:
        """Decide about a batch, and remember what was applied."""
        batch = _batch(judged)
        decided = decide(
            batch,
            np.arange(len(judged)),
            types={"mine"},
            known=self.known,
            high=self.high,
            ask_ledger=lambda asked: {event_key(one) for one in asked} & self.applied,  # type: ignore[arg-type]
        )
        self.known.add(decided.applied)
        self.high |= decided.high
        for one, code in zip(judged, decided.codes, strict=True):
            if DISPOSITIONS[code] is Disposition.APPLIED:
                self.applied.add(event_key(one))
        return decided


def _names(decided: Decided) -> list[Disposition]:
    return [DISPOSITIONS[code] for code in decided.codes]


@settings(deadline=None)
@given(_records(), st.integers(0, 20))
def test_batches_decide_as_single_records_are_decided(judged: list[Judged], cut: int) -> None:
    """Duplicates, old sequences, gaps, other types, bad ones, cut anywhere: equal to `classify` over all at once."""
    expected = [entry.disposition for entry in classify(judged, types={"mine"}, known=set(), high={})]
    file = _File()
    assert _names(file.fold(judged[:cut])) + _names(file.fold(judged[cut:])) == expected
    highest: dict[ProducerKey, int] = {}
    for one, disposition in zip(judged, expected, strict=True):
        if disposition is Disposition.APPLIED:
            highest[producer_key(one)] = one.sequence
    assert file.high == highest


@settings(deadline=None)
@given(_records())
def test_every_record_has_one_line_and_one_count(judged: list[Judged]) -> None:
    """The ledger has a line for each offset with its disposition, and the counts add up to what was read."""
    batch, file = _batch(judged), _File()
    decided = file.fold(judged)
    before = {("runs", partition): Progress("runs", partition, "id", 0, 0) for partition in (0, 1)}
    after = before | progressed(before, batch, decided)
    lines = ledger_rows(batch, decided).to_pylist()
    assert [(line["topic_partition"], line["record_offset"]) for line in lines] == [
        (one.record.partition, one.record.offset) for one in judged
    ]
    assert [line["reason"] for line in lines] == [one.reason for one in judged]
    assert sum(one.read for one in after.values()) == len(judged)
    for one in after.values():
        mine = [line for line in lines if line["topic_partition"] == one.partition]
        assert one.balanced
        for disposition in Disposition:
            assert getattr(one, disposition.value) == sum(line["disposition"] == disposition for line in mine)
        assert one.next_offset == max((line["record_offset"] + 1 for line in mine), default=0)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=30), max_size=12), st.lists(st.integers(0, 2**64 - 1)))
def test_what_is_known_is_found(added: list[list[int]], asked: list[int]) -> None:
    """A filter may not miss: add words in any portions, ask for some, compare with a set."""
    known, everything = KnownEvents(), set[int]()
    for portion in added:
        known.add(np.array(portion, dtype=np.uint64))
        everything |= set(portion)
    assert len(known) == sum(map(len, added))
    wanted = asked + [word for portion in added[:1] for word in portion[:1]]
    assert known.any_of(np.sort(np.array(wanted, dtype=np.uint64))) == bool(everything & set(wanted))


def test_fingerprints_depend_on_the_event_alone() -> None:
    """Slices, other neighbours and ids that are not 32 bytes long change no fingerprint; attempt and place do."""
    ids = pa.array(["a" * 32, "b" * 32, "Ω" * 32, ""])
    attempts = pa.array([None, 1, 2, 0], pa.uint32())
    words = np.array([place_word(("runs", 0))] * 4, dtype=np.uint64)
    whole = fingerprints(ids, attempts, words)
    for index in range(4):
        alone = fingerprints(ids.slice(index, 1), attempts.slice(index, 1), words[index : index + 1])
        assert alone[0] == whole[index]
        assert fingerprints(pa.array([ids[index].as_py()]), attempts.slice(index, 1), words[:1])[0] == whole[index]
    same = pa.array(["a" * 32] * 4)
    assert len(set(fingerprints(same, attempts, words).tolist())) == 4
    places = np.array([place_word(("runs", partition)) for partition in range(4)], dtype=np.uint64)
    assert len(set(fingerprints(same, pa.nulls(4, pa.uint32()), places).tolist())) == 4
