"""The checks of `esper.leyline.open_record` over whole columns: they acquit, and never judge.

A row that fails one is opened by `open_record` itself, which alone decides and says why. So both paths agree wherever
these checks are no weaker, and a test holds them against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from esper.leyline import CLOCK_SKEW_MS_MAX, Allowed
from esper.oona import Position
from esper.projection.columnar._batch import Int32s, Int64s

Mask = npt.NDArray[np.bool_]
_EVENT_ID_LENGTH: Final = 32
#: Of the column's own type: Arrow would bring both to signed numbers, which end in the middle.
_NO_SEQUENCE: Final = pa.scalar(0, pa.uint64())


def acquitted(
    meta: pa.StructArray,
    *,
    keys: pa.Array,
    types: pa.Array | str,
    places: Sequence[Position],
    place: Int32s,
    append_ms: Int64s,
    allowed: Allowed,
) -> Mask:
    """Return of which rows everything that `open_record` checks after the signature holds.

    `meta` is canonical; `keys` and `types` (one of all rows, or one for each) are strings, as the records say.
    """
    expected = pa.scalar(types) if isinstance(types, str) else types
    checks = [
        meta.is_valid(),
        pc.equal(meta.field("type"), expected),
        pc.equal(meta.field("subject"), keys),
        pc.equal(pc.utf8_length(meta.field("event_id")), _EVENT_ID_LENGTH),
        pc.greater(pc.utf8_length(meta.field("producer_id")), 0),
        pc.not_equal(meta.field("sequence"), _NO_SEQUENCE),
    ]
    good = _timely(meta.field("time"), append_ms) & _permitted(meta.field("source"), types, places, place, allowed)
    for check in checks:
        good &= check.fill_null(False).to_numpy(zero_copy_only=False)
    return good


def _timely(time: pa.Array, append_ms: Int64s) -> Mask:
    # An absent time is the Unix epoch, as for protobuf.
    micros = time.cast(pa.int64()).fill_null(0).to_numpy()
    timely: Mask = (append_ms <= 0) | (micros // 1_000 - append_ms <= CLOCK_SKEW_MS_MAX)
    return timely


def _permitted(
    source: pa.Array, types: pa.Array | str, places: Sequence[Position], place: Int32s, allowed: Allowed
) -> Mask:
    """Return which sources may write such events there; asks once for each combination."""
    sources = source.dictionary_encode()
    names = sources.dictionary.to_pylist()
    codes = place.astype(np.int64) * max(len(names), 1) + sources.indices.fill_null(0).to_numpy()
    kinds = [types]
    if not isinstance(types, str):
        named = types.dictionary_encode()
        kinds = named.dictionary.to_pylist()
        codes = codes * max(len(kinds), 1) + named.indices.to_numpy()
    distinct, back = np.unique(codes, return_inverse=True)
    verdicts = np.zeros(len(distinct), dtype=np.bool_)
    for index, code in enumerate(distinct.tolist()):
        rest, kind = divmod(code, max(len(kinds), 1))
        where, who = divmod(rest, max(len(names), 1))
        if names and kinds:
            verdicts[index] = allowed(places[where][0], kinds[kind], names[who])
    permitted: Mask = verdicts[back]
    return permitted
