"""The canonical bytes of a row, and the hash of a table: pure, so that anybody can compute it again.

A value is one tag byte and its content; lengths and counts are 4 bytes, big-endian.

| tag | value | content |
|---|---|---|
| `Z` | null | nothing |
| `F` `T` | false, true | nothing |
| `I` | integer of any width | length, decimal digits in ASCII |
| `D` | float of any width | 8 bytes, IEEE 754 double, big-endian; every NaN as 7ff8000000000000 |
| `S` | text | length, UTF-8 |
| `B` | bytes | length, the bytes |
| `M` | moment | 8 bytes, signed microseconds since 1970-01-01T00:00:00Z, big-endian; one without a zone as if UTC |
| `X` | decimal, date, time, duration | length, as Python writes it (`str`) |
| `L` | list | count, values |
| `P` | map with entries | count, key and value of each pair, ordered by the bytes of the keys |
| `R` | struct, and the row itself | count, then name (as text) and value of each field, in column order |

An empty map is encoded as an empty list. For one list of typed columns the encoding is injective: two
rows have the same bytes only when they are equal (NaNs count as equal, 0.0 and -0.0 do not).

The hash of a table is its number of rows and the sum modulo 2^128 of the SHA-256 of each row (AdHash:
Bellare and Micciancio, EUROCRYPT 1997), so that it does not depend on the order of the rows. It finds
errors and changes by hand; an adversary who may choose thousands of rows freely could build a collision
of so short a sum, which is why signatures and not this hash guard the log itself.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_NAN: Final = bytes.fromhex("7ff8000000000000")
_MODULUS: Final = 2**128


def canonical_row(row: Mapping[str, object]) -> bytes:
    """Return the canonical bytes of a row: values as pyarrow's `to_pylist` gives them, by column name.

    Raises:
        TypeError: a value is of a type that the encoding does not know.
    """
    return _encode(row)


def row_digest(row: Mapping[str, object]) -> int:
    """Return the SHA-256 of a row's canonical bytes as a number."""
    return int.from_bytes(hashlib.sha256(canonical_row(row)).digest(), "big")


@dataclass(frozen=True)
class TableHash:
    """A table's number of rows, and the sum of their digests modulo 2^128."""

    rows: int = 0
    total: int = 0

    def add(self, rows: Iterable[Mapping[str, object]]) -> TableHash:
        """Return the hash with `rows` added."""
        count, total = self.rows, self.total
        for row in rows:
            count += 1
            total += row_digest(row)
        return TableHash(count, total % _MODULUS)

    def add_digests(self, digests: Sequence[bytes]) -> TableHash:
        """Return the hash with rows added of which these are the SHA-256."""
        total = self.total + sum(int.from_bytes(digest, "big") for digest in digests)
        return TableHash(self.rows + len(digests), total % _MODULUS)

    @property
    def text(self) -> str:
        """The sum as 32 hexadecimal digits."""
        return f"{self.total:032x}"


def _sized(tag: bytes, content: bytes) -> bytes:
    return tag + len(content).to_bytes(4, "big") + content


def _counted(tag: bytes, count: int, parts: Iterable[bytes]) -> bytes:
    return tag + count.to_bytes(4, "big") + b"".join(parts)


def _encode(value: object) -> bytes:
    if value is None:
        return b"Z"
    if isinstance(value, bool):  # before int, of which bool is a kind
        return b"T" if value else b"F"
    if isinstance(value, int):
        return _sized(b"I", str(value).encode())
    if isinstance(value, float):
        return b"D" + (_NAN if math.isnan(value) else struct.pack(">d", value))
    if isinstance(value, str):
        return _sized(b"S", value.encode())
    if isinstance(value, bytes):
        return _sized(b"B", value)
    if isinstance(value, datetime):
        value = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        return b"M" + ((value - _EPOCH) // _MICROSECOND).to_bytes(8, "big", signed=True)
    if isinstance(value, Decimal | date | time | timedelta):
        return _sized(b"X", str(value).encode())
    if isinstance(value, Mapping):
        return _counted(b"R", len(value), (_sized(b"S", name.encode()) + _encode(item) for name, item in value.items()))
    if isinstance(value, list):
        return _encode_list(value)
    raise TypeError(f"a {type(value).__name__} has no canonical bytes")


def _encode_list(items: Sequence[object]) -> bytes:
    """Encode a list or, as pyarrow gives a map, a list of (key, value) tuples."""
    if items and isinstance(items[0], tuple):
        pairs = sorted((_encode(key), _encode(value)) for key, value in _pairs(items))
        return _counted(b"P", len(pairs), (key + value for key, value in pairs))
    return _counted(b"L", len(items), map(_encode, items))


def _pairs(items: Sequence[object]) -> Iterable[tuple[object, object]]:
    for item in items:
        assert isinstance(item, tuple), "a map is a list of pairs throughout"
        yield item
