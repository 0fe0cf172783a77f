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
_ABSENT: Final = struct.pack(">I", 0xFFFF_FFFF)
_NUMBER_BYTES: Final = 8
_KEPT_NAME_CHARACTERS_MAX: Final = 64
_OFFSET: Final = struct.Struct(">Iq").pack
_LENGTH: Final = struct.Struct(">I").pack


def record_hash(record: Record) -> bytes:
    """Return the SHA-256 of everything that Kafka holds of a record, its place in the partition included."""
    key, value, headers = record.key, record.value, record.headers
    parts = [
        _OFFSET(_NUMBER_BYTES, record.offset),
        _ABSENT if key is None else _LENGTH(len(key)),
        key or b"",
        _ABSENT if value is None else _LENGTH(len(value)),
        value or b"",
        _LENGTH(len(headers)),
    ]
    for name, content in headers:
        parts += (
            _kept_name(name) if len(name) <= _KEPT_NAME_CHARACTERS_MAX else _name(name),
            _ABSENT if content is None else _LENGTH(len(content)),
            content or b"",
        )
    parts.append(_OFFSET(_NUMBER_BYTES, record.append_time_ms))
    return sha256(b"".join(parts)).digest()


def _name(name: str) -> bytes:
    encoded = name.encode()
    return _LENGTH(len(encoded)) + encoded


#: All records of ours have the same names; a stranger's long ones are not kept.
_kept_name = lru_cache(maxsize=64)(_name)


def advance(digest: bytes, hashed: bytes) -> bytes:
    """Return the partition's digest after one more record, given as its `record_hash`."""
    return sha256(digest + hashed).digest()
