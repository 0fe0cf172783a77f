"""The ledger's lines of a batch as Arrow, and the counts that they add up to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import pyarrow as pa

from esper.oona import Position
from esper.projection.columnar._batch import Batch
from esper.projection.columnar._dispositions import DISPOSITIONS, Decided
from esper.projection.records._columns import TIMESTAMP
from esper.projection.records._ledger import Disposition, Progress

_NAMES: Final = pa.array([one.value for one in DISPOSITIONS], pa.string())


def ledger_rows(batch: Batch, decided: Decided) -> pa.Table:
    """Return one line for each record that was read; columns as the table `esper.records` has them."""
    indices = decided.indices
    place = batch.place[indices]
    topics = pa.array([topic for topic, _ in batch.places], pa.string())
    partitions = np.array([partition for _, partition in batch.places], dtype=np.int32)
    whole = len(indices) == len(batch)
    return pa.table(
        {
            "topic": pa.DictionaryArray.from_arrays(pa.array(place), topics),
            "topic_partition": partitions[place],
            "record_offset": batch.offset[indices],
            "append_time": pa.array(batch.append_ms[indices] * 1_000).cast(TIMESTAMP),
            "disposition": pa.DictionaryArray.from_arrays(pa.array(decided.codes), _NAMES),
            "reason": _reasons(batch, decided),
            "event_id": batch.event_id if whole else batch.event_id.take(indices),
            "attempt": batch.attempt if whole else batch.attempt.take(indices),
            "producer_id": pa.DictionaryArray.from_arrays(
                pa.array(batch.producer[indices]), pa.array(batch.producers, pa.string())
            ),
            "sequence": batch.sequence[indices],
        }
    )


def _reasons(batch: Batch, decided: Decided) -> pa.Array:
    if not batch.bad:
        return pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(len(decided.indices), dtype=np.int8)), pa.array([""], pa.string())
        )
    bad = batch.bad
    return pa.array([bad[index].reason if index in bad else "" for index in decided.indices.tolist()], pa.string())


def progressed(progress: Mapping[Position, Progress], batch: Batch, decided: Decided) -> dict[Position, Progress]:
    """Return the progress of the partitions that were read, after it."""
    place = batch.place[decided.indices]
    width = len(DISPOSITIONS)
    counts = np.bincount(place * width + decided.codes, minlength=len(batch.places) * width).reshape(-1, width)
    ends = np.zeros(len(batch.places), dtype=np.int64)
    np.maximum.at(ends, place, batch.offset[decided.indices] + 1)
    return {
        where: _added(progress[where], int(ends[code]), [int(count) for count in counts[code]])
        for code, where in enumerate(batch.places)
        if counts[code].any()
    }


def _added(old: Progress, end: int, counts: list[int]) -> Progress:
    by = dict(zip(DISPOSITIONS, counts, strict=True))
    new = replace(
        old,
        next_offset=end,
        read=old.read + sum(counts),
        applied=old.applied + by[Disposition.APPLIED],
        filtered=old.filtered + by[Disposition.FILTERED],
        deduplicated=old.deduplicated + by[Disposition.DEDUPLICATED],
        discarded=old.discarded + by[Disposition.DISCARDED],
    )
    assert new.balanced, "every record read has one disposition"
    return new
