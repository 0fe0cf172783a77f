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


def acquitted(
    meta: pa.StructArray,
    *,
    keys: Sequence[str],
    types: Sequence[str] | str,
    places: Sequence[Position],
    place: Int32s,
    append_ms: Int64s,
    allowed: Allowed,
) -> Mask:
    """Return of which rows everything that `open_record` checks after the signature holds.

    `meta` is canonical; `types` is one type of all rows or one for each, as the records' headers say.
    """
    expected = pa.scalar(types) if isinstance(types, str) else pa.array(types, pa.string())
    checks = [
        meta.is_valid(),
        pc.equal(meta.field("type"), expected),
        pc.equal(meta.field("subject"), pa.array(keys, pa.string())),
        pc.equal(pc.utf8_length(meta.field("event_id")), _EVENT_ID_LENGTH),
        pc.greater(pc.utf8_length(meta.field("producer_id")), 0),
        pc.greater(meta.field("sequence"), 0),
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
    source: pa.Array, types: Sequence[str] | str, places: Sequence[Position], place: Int32s, allowed: Allowed
) -> Mask:
    """Return which sources may write such events there; asks once for each combination."""
    sources = source.dictionary_encode()
    named = pa.array([types] * len(place) if isinstance(types, str) else types, pa.string()).dictionary_encode()
    names, kinds = sources.dictionary.to_pylist(), named.dictionary.to_pylist()
    codes = place.astype(np.int64)
    for encoded, count in ((sources, len(names)), (named, len(kinds))):
        codes = codes * max(count, 1) + encoded.indices.fill_null(0).to_numpy()
    distinct, back = np.unique(codes, return_inverse=True)
    verdicts = np.zeros(len(distinct), dtype=np.bool_)
    for index, code in enumerate(distinct.tolist()):
        rest, kind = divmod(code, max(len(kinds), 1))
        where, who = divmod(rest, max(len(names), 1))
        if names and kinds:
            verdicts[index] = allowed(places[where][0], kinds[kind], names[who])
    permitted: Mask = verdicts[back]
    return permitted
