"""Tests of reading a segment's blocks: whatever records lie beside each other, each comes back as it was written."""

from __future__ import annotations

import io

import fastavro
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.leyline import Record
from esper.projection.archive._decode import decode_block, decode_columns
from esper.projection.archive._segments import SCHEMA

_BYTES = st.one_of(st.none(), st.binary(max_size=3), st.sampled_from([b"s" * 40, b"t" * 40, b"x" * 200]))
_NAMES = st.sampled_from(["signature", "type", "s", "", "n" * 70, "é"])
#: Few names and contents, so that neighbours are often alike but for one part.
_HEADERS = st.one_of(
    st.lists(st.tuples(_NAMES, _BYTES), max_size=4).map(tuple),
    st.tuples(
        st.tuples(st.just("signature"), st.sampled_from([b"s" * 40, b"t" * 40, b"signature", b"i"])),
        st.tuples(st.just("type"), st.sampled_from([b"A", b"B", None])),
    ),
)
_NUMBERS = st.one_of(st.integers(0, 200), st.integers(-(2**63), 2**63 - 1))
_RECORDS = st.lists(st.tuples(_NUMBERS, _NUMBERS, st.integers(0, 2), _BYTES, _BYTES, _HEADERS), min_size=1, max_size=12)


@settings(max_examples=400, deadline=None)
@given(rows=_RECORDS)
def test_records_come_back_as_they_were_written(
    rows: list[tuple[int, int, int, bytes, bytes, tuple[object, ...]]],
) -> None:
    """Numbers of every length, absent and empty parts, headers alike and not: one by one and in columns."""
    file = io.BytesIO()
    fastavro.writer(
        file,
        SCHEMA,
        [
            {
                "offset": offset,
                "timestamp": time,
                "timestamp_type": kind,
                "key": key,
                "value": value,
                "headers": [{"name": name, "value": content} for name, content in headers],
            }
            for offset, time, kind, key, value, headers in rows
        ],
    )
    file.seek(0)
    (block,) = fastavro.block_reader(file)
    content = block.bytes_.getvalue()
    expected = [Record("t", 3, offset, key, value, headers, time) for offset, time, _, key, value, headers in rows]
    assert list(decode_columns(content, len(rows), topic="t", partition=3).records()) == expected
    found = list(decode_block(content, len(rows), topic="t", partition=3))
    assert found == list(zip(expected, [kind for _, _, kind, *_ in rows], strict=True))
