"""What becomes of each record of a batch: decided for all at once, or one by one where something may be a copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from esper.projection.columnar._batch import BAD, Batch, Int64s, UInt64s
from esper.projection.columnar._known import KnownEvents, fingerprints, place_word
from esper.projection.records._judged import Judged
from esper.projection.records._ledger import Disposition, EventKey, ProducerKey, classify

#: Codes of the dispositions, in the order of the enum.
DISPOSITIONS: Final = tuple(Disposition)
_CODE: Final = {one: np.int8(code) for code, one in enumerate(DISPOSITIONS)}
APPLIED: Final = _CODE[Disposition.APPLIED]

Codes = npt.NDArray[np.int8]
#: Asks the ledger which of these events were applied before.
AskLedger = Callable[[Sequence[Judged]], AbstractSet[EventKey]]


@dataclass(frozen=True)
class Decided:
    """The records of a batch that a projection reads, and what became of them."""

    #: Their indices in the batch.
    indices: Int64s
    #: Code of each one's disposition.
    codes: Codes
    #: Fingerprints of those that were applied.
    applied: UInt64s
    #: The highest sequence of each producer whose events were applied.
    high: Mapping[ProducerKey, int]


def decide(
    batch: Batch,
    indices: Int64s,
    *,
    types: AbstractSet[str],
    known: KnownEvents,
    high: Mapping[ProducerKey, int],
    ask_ledger: AskLedger,
) -> Decided:
    """Give each record at `indices`, which stand in the order of their partitions, its disposition."""
    kind = batch.kind[indices]
    mine = np.array([*(name in types for name in batch.kinds), False])[kind]  # BAD is the last one
    codes = np.where(kind == BAD, _CODE[Disposition.DISCARDED], _CODE[Disposition.FILTERED]).astype(np.int8)
    candidates = indices[mine]
    prints = _fingerprints(batch, candidates)
    if _all_new(batch, candidates, prints, known, high):
        codes[mine] = APPLIED
        applied = candidates
    else:
        judged = [batch.judged(int(index)) for index in candidates]
        entries = classify(judged, types=types, known=ask_ledger(judged), high=high)
        codes[mine] = [_CODE[entry.disposition] for entry in entries]
        is_applied = codes[mine] == APPLIED
        applied, prints = candidates[is_applied], prints[is_applied]
    return Decided(indices, codes, prints, _highest(batch, applied))


def _fingerprints(batch: Batch, indices: Int64s) -> UInt64s:
    words = np.array([place_word(place) for place in batch.places], dtype=np.uint64)
    return fingerprints(
        batch.event_id if len(indices) == len(batch) else batch.event_id.take(indices),
        batch.attempt if len(indices) == len(batch) else batch.attempt.take(indices),
        words[batch.place[indices]] if len(words) else np.zeros(0, dtype=np.uint64),
    )


def _all_new(
    batch: Batch, indices: Int64s, prints: UInt64s, known: KnownEvents, high: Mapping[ProducerKey, int]
) -> bool:
    """Return whether none of these can be a copy: no event is there twice, and every producer's sequences grow."""
    ascending = np.sort(prints)
    if (ascending[1:] == ascending[:-1]).any() or known.any_of(ascending):
        return False
    lives = _lives(batch, indices)
    order = np.argsort(lives, kind="stable")
    lives, sequence = lives[order], batch.sequence[indices][order]
    same = lives[1:] == lives[:-1]
    if (sequence[1:][same] <= sequence[:-1][same]).any():
        return False
    firsts = np.flatnonzero(np.concatenate([[True], ~same])) if len(lives) else np.zeros(0, dtype=np.int64)
    return all(int(sequence[first]) > high.get(_producer(batch, int(indices[order[first]])), 0) for first in firsts)


def _lives(batch: Batch, indices: Int64s) -> Int64s:
    """Return a number for each record's producer on its partition."""
    return np.asarray(batch.place[indices].astype(np.int64) * len(batch.producers) + batch.producer[indices])


def _producer(batch: Batch, index: int) -> ProducerKey:
    topic, partition = batch.places[int(batch.place[index])]
    return ProducerKey(topic, partition, batch.producers[int(batch.producer[index])])


def _highest(batch: Batch, applied: Int64s) -> dict[ProducerKey, int]:
    """Return each producer's last applied sequence; later ones are higher."""
    lives = _lives(batch, applied)
    _, last = np.unique(lives[::-1], return_index=True)
    return {_producer(batch, index): int(batch.sequence[index]) for index in applied[len(applied) - 1 - last].tolist()}
