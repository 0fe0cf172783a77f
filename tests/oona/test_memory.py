"""What was dealt with is known again, across restarts too, and a contradiction is told from a copy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.core.ids import derive_id
from esper.leyline import Record
from esper.leyline import messages as ly
from esper.oona._memory import HighWater, Judgement, LogMemory, payload_digest


def record(sequence: int, *, epoch: int = 1, event: str = "", producer: str = "p") -> tuple[Record, ly.EventMeta]:
    """Return a record on `system-state`-0 and its meta."""
    meta = ly.EventMeta(event_id=event or derive_id("e", sequence), producer_id=producer, sequence=sequence)
    packet = ly.SystemStatePacket(meta=meta, current_epoch=epoch)
    return Record("system-state", 0, 0, b"run", packet.SerializeToString(deterministic=True)), meta


def remembering(*known: tuple[Record, ly.EventMeta]) -> LogMemory:
    """Return a memory that has dealt with `known`."""
    memory = LogMemory()
    for one in known:
        assert memory.judge(*one) == (Judgement.NEW, "")
        memory.remember(*one)
    return memory


def test_rising_sequences_are_new_and_their_return_is_not() -> None:
    """A producer counts up; the same bytes again are a duplicate: judge, remember and judge again."""
    first, second = record(1), record(2)
    memory = remembering(first, second)
    assert memory.judge(*first) == (Judgement.DUPLICATE, "")
    assert memory.judge(*second) == (Judgement.DUPLICATE, "")
    assert memory.judge(*record(3)) == (Judgement.NEW, "")


def test_each_producer_and_partition_counts_for_itself() -> None:
    """Another life begins at 1 again: judge the same sequence of another producer and another partition."""
    memory = remembering(record(5))
    assert memory.judge(*record(1, producer="q"))[0] is Judgement.NEW
    moved, meta = record(5)
    elsewhere = Record(moved.topic, 1, 0, moved.key, moved.value)
    assert memory.judge(elsewhere, meta)[0] is Judgement.NEW


def test_two_lives_may_name_their_events_alike() -> None:
    """Attempts of one run derive equal ids: the second producer's event is for the topic's readers to judge."""
    memory = remembering(record(1, event="a" * 32, epoch=1))
    assert memory.judge(*record(1, event="a" * 32, epoch=2, producer="q"))[0] is Judgement.NEW


@pytest.mark.parametrize("sequence", [1, 2])
def test_same_id_with_another_payload_is_a_conflict(sequence: int) -> None:
    """One event says one thing: judge the id again with another payload, at the same and at a later sequence."""
    memory = remembering(record(1, event="a" * 32, epoch=1))
    judgement, detail = memory.judge(*record(sequence, event="a" * 32, epoch=9))
    assert judgement is Judgement.CONFLICT
    assert "another payload" in detail


def test_same_id_and_payload_at_a_later_sequence_is_a_duplicate() -> None:
    """A producer that says an event twice says it once: judge the id again with a higher sequence."""
    memory = remembering(record(1, event="a" * 32))
    assert memory.judge(*record(2, event="a" * 32)) == (Judgement.DUPLICATE, "")


def test_used_sequence_with_another_id_is_a_conflict() -> None:
    """Two events cannot be the third of one producer: judge another id at a sequence that is known."""
    memory = remembering(record(1), record(2), record(3))
    judgement, detail = memory.judge(*record(2, event="b" * 32))
    assert judgement is Judgement.CONFLICT
    assert "sequence 2" in detail


def test_old_events_beyond_the_window_stay_duplicates() -> None:
    """Only recent payloads are kept; older records are still known by their sequence: judge the first of 2,000."""
    memory = remembering(*(record(number) for number in range(1, 2_001)))
    assert memory.judge(*record(1)) == (Judgement.DUPLICATE, "")
    assert memory.judge(*record(1, event="c" * 32)) == (Judgement.DUPLICATE, "")


@given(st.dictionaries(st.text(min_size=1), st.integers(1, 2**40), max_size=300))
def test_metadata_carries_the_most_recent_producers(sequences: dict[str, int]) -> None:
    """A restart forgets nothing that fits an offset's metadata: write it, read it back, compare."""
    written = HighWater()
    for producer, sequence in sequences.items():
        written.advance(producer, sequence)
    text = written.to_metadata()
    read = HighWater()
    complete = read.merge_metadata(text)
    assert len(text) <= 4096
    assert complete is (len(sequences) <= 216)
    kept = list(sequences.items())[-216:]
    assert {producer: read.of(producer) for producer, _ in kept} == dict(kept)


@pytest.mark.parametrize("text", ["", "hello", "esper1c:%%%", "esper1c:AAAA", "esper2c:", "esper1p:"])
def test_foreign_metadata_is_never_complete(text: str) -> None:
    """Offsets that another tool set say nothing of producers: read what it may have left."""
    high_water = HighWater()
    assert high_water.merge_metadata(text) is False
    assert len(high_water) == 0


def test_merging_never_lowers() -> None:
    """Two sources of one truth are united by their maximum: merge a lower and a higher state."""
    lower, higher = HighWater(), HighWater()
    lower.advance("p", 3)
    higher.advance("p", 7)
    higher.merge_metadata(lower.to_metadata())
    lower.merge_metadata(higher.to_metadata())
    assert (lower.of("p"), higher.of("p")) == (7, 7)


@given(st.binary(max_size=400))
def test_payload_digest_takes_any_bytes(value: bytes) -> None:
    """Bytes from the bus may be anything: digest them."""
    assert len(payload_digest(value)) == 32


def test_payload_digest_leaves_the_meta_out() -> None:
    """Copies differ in their meta only: compare digests of long and short metas, and of another payload."""
    short = ly.SystemStatePacket(meta=ly.EventMeta(event_id="x"), current_epoch=3)
    long = ly.SystemStatePacket(meta=ly.EventMeta(event_id="y" * 500, sequence=9), current_epoch=3)
    other = ly.SystemStatePacket(meta=ly.EventMeta(event_id="x"), current_epoch=4)
    digests = [payload_digest(packet.SerializeToString(deterministic=True)) for packet in (short, long, other)]
    assert digests[0] == digests[1] != digests[2]
