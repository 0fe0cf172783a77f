"""Tests of the canonical row bytes and the table hash."""

from __future__ import annotations

import hashlib
import math
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.projection import TableHash, canonical_row, row_digest

_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=4), st.binary(max_size=4)
)
_VALUES: st.SearchStrategy[Any] = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
)
_ROWS = st.dictionaries(st.text(max_size=3), _VALUES, max_size=3)


def _key(value: Any) -> Any:
    """Return a value that compares equal exactly where canonical bytes should."""
    if isinstance(value, float):
        return ("float", "nan" if math.isnan(value) else value.hex())
    if isinstance(value, dict):
        return ("dict", tuple((name, _key(item)) for name, item in value.items()))
    if isinstance(value, list):
        return ("list", tuple(_key(item) for item in value))
    return (type(value).__name__, value)


def test_the_bytes_are_those_of_the_table() -> None:
    """The encoding is fixed: one row with every tag, against bytes written out by hand from the documentation."""
    row = {
        "n": None,
        "t": True,
        "i": -12,
        "d": 1.5,
        "s": "é",
        "b": b"\x00",
        "m": datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC),
        "l": [1],
        "p": [("b", 2), ("a", 1)],
        "r": {"x": False},
    }
    expected = (
        b"R\x00\x00\x00\x0a"
        b"S\x00\x00\x00\x01nZ"
        b"S\x00\x00\x00\x01tT"
        b"S\x00\x00\x00\x01iI\x00\x00\x00\x03-12"
        b"S\x00\x00\x00\x01dD\x3f\xf8\x00\x00\x00\x00\x00\x00"
        b"S\x00\x00\x00\x01sS\x00\x00\x00\x02\xc3\xa9"
        b"S\x00\x00\x00\x01bB\x00\x00\x00\x01\x00"
        b"S\x00\x00\x00\x01mM\x00\x00\x00\x00\x00\x0f\x42\x40"
        b"S\x00\x00\x00\x01lL\x00\x00\x00\x01I\x00\x00\x00\x011"
        b"S\x00\x00\x00\x01pP\x00\x00\x00\x02"
        b"S\x00\x00\x00\x01aI\x00\x00\x00\x011S\x00\x00\x00\x01bI\x00\x00\x00\x012"
        b"S\x00\x00\x00\x01rR\x00\x00\x00\x01S\x00\x00\x00\x01xF"
    )
    assert canonical_row(row) == expected
    assert row_digest(row) == int.from_bytes(hashlib.sha256(expected).digest(), "big")


@given(_ROWS, _ROWS)
def test_equal_bytes_mean_equal_rows(left: dict[str, Any], right: dict[str, Any]) -> None:
    """The encoding is injective: any two rows have the same bytes exactly when they are the same."""
    assert (canonical_row(left) == canonical_row(right)) == (_key(left) == _key(right))


def test_floats_that_differ_only_in_sign_or_payload() -> None:
    """Zero keeps its sign, every NaN is one: compare the bytes of the edge values."""
    assert canonical_row({"x": 0.0}) != canonical_row({"x": -0.0})
    assert canonical_row({"x": float("nan")}) == canonical_row({"x": -float("nan")})


@given(st.lists(_ROWS, max_size=6), st.randoms())
def test_a_table_hash_knows_no_order(rows: list[dict[str, Any]], random: Any) -> None:
    """The sum is of a multiset: shuffled and split rows give the same hash, one row less gives another."""
    shuffled = list(rows)
    random.shuffle(shuffled)
    cut = len(rows) // 2
    assert TableHash().add(rows) == TableHash().add(shuffled[:cut]).add(shuffled[cut:])
    if rows:
        assert TableHash().add(rows[1:]) != TableHash().add(rows)


def test_the_sum_stays_below_its_modulus() -> None:
    """Many rows still give 32 digits: add the same row often enough to pass 2^128, against plain arithmetic."""
    rows = [{"x": 1}] * 5
    assert TableHash().add(rows).total == 5 * row_digest(rows[0]) % 2**128
    assert len(TableHash().add(rows).text) == 32


def test_maps_from_arrow_are_ordered_by_key() -> None:
    """A map's order does not count: the same entries in another order, as pyarrow returns them."""
    kind = pa.map_(pa.string(), pa.int64())
    rows = [pa.array([pairs], kind).to_pylist()[0] for pairs in ([("a", 1), ("b", 2)], [("b", 2), ("a", 1)])]
    assert canonical_row({"m": rows[0]}) == canonical_row({"m": rows[1]})


def test_an_unknown_type_is_refused() -> None:
    """Nothing is hashed by its looks: a type outside the table raises."""
    with pytest.raises(TypeError, match="no canonical bytes"):
        canonical_row({"x": object()})
