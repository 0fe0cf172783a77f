"""The rolling digest of a partition: what a checkpoint signs of every record before it.

d_0 = 32 zero bytes; d_{n+1} = SHA256(d_n || h_n), where h_n is the SHA-256 of the n-th record: offset, key, value,
headers in order and append time, each behind its length. A record can therefore be left out of a bundle and its
32-byte hash put in its place without breaking what follows.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from hashlib import sha256
from typing import Final

from esper.leyline import Record

DIGEST_BYTES: Final = 32
#: The state of a partition before its first record.
EMPTY: Final = bytes(DIGEST_BYTES)
#: Length that stands for "absent", which differs from "empty"; no field is that long.
_ABSENT_LENGTH: Final = 0xFFFF_FFFF
_ABSENT: Final = struct.pack(">I", _ABSENT_LENGTH)
_NUMBER_BYTES: Final = 8
_KEPT_NAME_CHARACTERS_MAX: Final = 64
_NUMBER: Final = struct.Struct(">Iq").pack
_LENGTH: Final = struct.Struct(">I").pack


def record_hash(record: Record) -> bytes:
    """Return the SHA-256 of everything that Kafka holds of a record, its place in the partition included."""
    key, value, headers = record.key, record.value, record.headers
    parts = [
        _NUMBER(_NUMBER_BYTES, record.offset),
        _ABSENT if key is None else _LENGTH(len(key)),
        key or b"",
        _ABSENT if value is None else _LENGTH(len(value)),
        value or b"",
        _LENGTH(len(headers)),
    ]
    for name, content in headers:
        length = _ABSENT_LENGTH if content is None else len(content)
        parts.append((_kept_before if len(name) <= _KEPT_NAME_CHARACTERS_MAX else _before)(name, length))
        parts.append(content or b"")
    parts.append(_NUMBER(_NUMBER_BYTES, record.append_time_ms))
    return sha256(b"".join(parts)).digest()


def _before(name: str, length: int) -> bytes:
    """Return what stands before a header's content: its name, and how long the content is."""
    encoded = name.encode()
    return _LENGTH(len(encoded)) + encoded + _LENGTH(length)


#: All records of ours have the same headers; a stranger's long names are not kept.
_kept_before = lru_cache(maxsize=64)(_before)


def advance(digest: bytes, hashed: bytes) -> bytes:
    """Return the partition's digest after one more record, given as its `record_hash`."""
    return sha256(digest + hashed).digest()
