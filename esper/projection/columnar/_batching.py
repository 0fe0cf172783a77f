"""Putting a batch together: what the records say of their places, and what the groups of one type found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from esper.projection.columnar._batch import BAD, Batch, Int32s, Int64s
from esper.projection.columnar._gathering import Gathered
from esper.projection.records._judged import Judged


@dataclass(frozen=True)
class Part:
    """The good records of one type, or of several types that nobody wants decoded."""

    types: pa.Array | str
    #: Their indices in the batch.
    indices: Int64s
    #: Canonical meta.
    meta: pa.StructArray
    attempt: pa.Array
    #: Their rows, None where they are not wanted.
    rows: pa.Table | None


def joined(found: Gathered, parts: Sequence[Part], bad: Mapping[int, Judged]) -> Batch:
    """Return one batch, in the order of the records."""
    count = len(found.offset)
    kinds: dict[str, int] = {}
    kind = np.full(count, BAD, dtype=np.int32)
    row = np.full(count, -1, dtype=np.int64)
    sequence = np.zeros(count, dtype=np.uint64)
    for part in parts:
        kind[part.indices] = _codes(part.types, kinds)
        sequence[part.indices] = part.meta.field("sequence").fill_null(0).to_numpy()
        if part.rows is not None:
            row[part.indices] = np.arange(len(part.indices))
    order = _order(count, parts, bad)
    empty = pa.array([""] * len(bad), pa.string())
    producers = _ordered([*(part.meta.field("producer_id") for part in parts), empty], order).dictionary_encode()
    return Batch(
        found.places,
        found.place,
        found.offset,
        found.append_ms,
        list(kinds),
        kind,
        row,
        _ordered([*(part.meta.field("event_id") for part in parts), empty], order),
        _ordered([*(part.attempt for part in parts), pa.nulls(len(bad), pa.uint32())], order),
        producers.dictionary.to_pylist(),
        producers.indices.to_numpy().astype(np.int32),
        sequence,
        bad,
        {part.types: part.rows for part in parts if part.rows is not None and isinstance(part.types, str)},
    )


def _codes(types: pa.Array | str, kinds: dict[str, int]) -> Int32s | int:
    """Return the number of each type's name, one where all are of it; new names get the next ones."""
    if isinstance(types, str):
        return kinds.setdefault(types, len(kinds))
    named = types.dictionary_encode()
    numbers = np.array([kinds.setdefault(name, len(kinds)) for name in named.dictionary.to_pylist()], dtype=np.int32)
    return np.asarray(numbers[named.indices.to_numpy()])


def _order(count: int, parts: Sequence[Part], bad: Mapping[int, Judged]) -> pa.Array | None:
    """Return where each record stands in the parts put behind one another; None where it is there already."""
    at = np.concatenate([*(part.indices for part in parts), np.array(list(bad), dtype=np.int64)])
    if (at == np.arange(count)).all():
        return None
    back = np.empty(count, dtype=np.int64)
    back[at] = np.arange(count)
    return pa.array(back)


def _ordered(arrays: Sequence[pa.Array], order: pa.Array | None) -> pa.Array:
    together = pa.concat_arrays(arrays)
    return together if order is None else together.take(order)
