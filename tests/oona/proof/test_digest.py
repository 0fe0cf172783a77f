"""The rolling digest: every field of a record counts, and the layout stays what checkpoints in old logs signed."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from esper.leyline import Record
from esper.oona.proof._digest import EMPTY, advance, record_hash

RECORD = Record("runs", 3, 17, b"key", b"value", (("signature", b"s"), ("type", b"t")), 1_700_000_000_000)
FIELDS = st.none() | st.binary(max_size=8)
HEADERS = st.lists(st.tuples(st.text(max_size=4), FIELDS), max_size=3).map(tuple)
RECORDS = st.builds(
    Record,
    topic=st.just("runs"),
    partition=st.just(0),
    offset=st.integers(0, 2**62),
    key=FIELDS,
    value=FIELDS,
    headers=HEADERS,
    append_time_ms=st.integers(-1, 2**62),
)


def prefixed(content: bytes) -> bytes:
    """Return a field behind its length."""
    return struct.pack(">I", len(content)) + content


def test_layout_is_pinned() -> None:
    """Old checkpoints must verify for ever: build the hash of one record by hand, and the digest after it."""
    expected = b"".join(
        [
            prefixed(struct.pack(">q", 17)),
            prefixed(b"key"),
            prefixed(b"value"),
            struct.pack(">I", 2),
            prefixed(b"signature") + prefixed(b"s"),
            prefixed(b"type") + prefixed(b"t"),
            prefixed(struct.pack(">q", 1_700_000_000_000)),
        ]
    )
    assert record_hash(RECORD) == hashlib.sha256(expected).digest()
    assert advance(EMPTY, record_hash(RECORD)) == hashlib.sha256(bytes(32) + record_hash(RECORD)).digest()


@given(first=RECORDS, second=RECORDS)
def test_only_equal_records_hash_alike(first: Record, second: Record) -> None:
    """Absent and empty fields differ, and no field runs into the next: hash pairs of small records."""
    assert (record_hash(first) == record_hash(second)) == (first == second)


def test_absent_is_not_empty() -> None:
    """A tombstone is not an empty value: hash both, for key, value and header."""
    variants = [
        replace(RECORD, key=None),
        replace(RECORD, key=b""),
        replace(RECORD, value=None),
        replace(RECORD, value=b""),
        replace(RECORD, headers=(("signature", None),)),
        replace(RECORD, headers=(("signature", b""),)),
    ]
    assert len({record_hash(one) for one in variants}) == len(variants)
