"""The canonical bytes of many rows at once: exactly those of `canonical_row`, several times as fast.

A batch is encoded column by column, which asks for the type of each column once instead of for that of each value.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, pairwise, repeat
from typing import Final

import pyarrow as pa

from esper.projection.files._canonical import canonical_row

_NULL: Final = b"Z"
_NAN: Final = b"D" + bytes.fromhex("7ff8000000000000")


def row_digests(batch: pa.RecordBatch) -> list[bytes]:
    """Return the SHA-256 of each row's canonical bytes.

    Raises:
        TypeError: a column is of a type that the encoding does not know.
    """
    return [hashlib.sha256(row).digest() for row in _structs(batch.schema.names, batch.columns, batch.num_rows)]


def _structs(names: Iterable[str], columns: Iterable[pa.Array], rows: int) -> Iterator[bytes]:
    """Give the bytes of each row of columns that have these names."""
    heads = [_sized(b"S", name.encode()) for name in names]
    parts = chain.from_iterable((repeat(head), _encoded(column)) for head, column in zip(heads, columns, strict=True))
    start = b"R" + len(heads).to_bytes(4, "big")
    return map(b"".join, zip(repeat(start, rows), *parts, strict=False))


def _encoded(array: pa.Array) -> list[bytes]:
    """Return the canonical bytes of each value of a column."""
    kind = array.type
    if pa.types.is_struct(kind):
        fields = [kind.field(i).name for i in range(kind.num_fields)]
        return _unless_null(array, list(_structs(fields, array.flatten(), len(array))))
    if pa.types.is_map(kind):
        pairs = list(map(b"".join, zip(_encoded(array.keys), _encoded(array.items), strict=True)))
        return _runs(array, pairs, _map_bytes)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _runs(array, _encoded(array.values), _list_bytes)
    if pa.types.is_timestamp(kind):
        micros = array.cast(pa.timestamp("us", kind.tz)).cast(pa.int64())
        return [_NULL if v is None else b"M" + v.to_bytes(8, "big", signed=True) for v in micros.to_pylist()]
    return _each(array, _encoder(kind))


def _encoder(kind: pa.DataType) -> Callable[[object], bytes]:
    if pa.types.is_boolean(kind):
        return lambda value: b"T" if value else b"F"
    if pa.types.is_integer(kind):
        return lambda value: _sized(b"I", str(value).encode())
    if pa.types.is_floating(kind):
        pack = struct.Struct(">cd").pack
        return lambda value: pack(b"D", value) if value == value else _NAN  # A NaN is what differs from itself.
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return lambda value: _sized(b"S", str(value).encode())
    return _by_value


def _by_value(value: object) -> bytes:
    """Return the canonical bytes of a value of a rarer type, as a row of one column holds them."""
    head = len(canonical_row({"": None})) - len(_NULL)
    return canonical_row({"": value})[head:]


def _each(array: pa.Array, encode: Callable[[object], bytes]) -> list[bytes]:
    """Encode each different value once: names and ids come again and again."""
    values = array.to_pylist()
    if pa.types.is_floating(array.type):  # 0.0 and -0.0 are one key of a dictionary, and not one value
        return [_NULL if value is None else encode(value) for value in values]
    known: dict[object, bytes] = {value: encode(value) for value in set(values) if value is not None}
    known[None] = _NULL
    return [known[value] for value in values]


def _runs(array: pa.Array, items: list[bytes], join: Callable[[list[bytes]], bytes]) -> list[bytes]:
    ends = array.offsets.to_pylist()
    return _unless_null(array, [join(items[a:b]) for a, b in pairwise(ends)])


def _list_bytes(items: list[bytes]) -> bytes:
    return b"L" + len(items).to_bytes(4, "big") + b"".join(items)


def _map_bytes(pairs: list[bytes]) -> bytes:
    if not pairs:
        return _list_bytes([])
    return b"P" + len(pairs).to_bytes(4, "big") + b"".join(sorted(pairs))


def _unless_null(array: pa.Array, encoded: list[bytes]) -> list[bytes]:
    if array.null_count == 0:
        return encoded
    return [value if valid else _NULL for value, valid in zip(encoded, array.is_valid().to_pylist(), strict=True)]


def _sized(tag: bytes, content: bytes) -> bytes:
    return tag + len(content).to_bytes(4, "big") + content
