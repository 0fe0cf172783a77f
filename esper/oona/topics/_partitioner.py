"""Where a key lives: Kafka's own partitioner, so that every client of the log agrees."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

_SEED: Final = 0x9747B28C
_MULTIPLIER: Final = 0x5BD1E995
_ROTATION: Final = 24
_WORD_MASK: Final = 0xFFFFFFFF
#: A run's key is hashed for each of its events; 4,096 runs at a time need no second hash.
_CACHED_KEYS: Final = 4096


def murmur2(key: bytes) -> int:
    """Return the 32-bit hash of `key`, unsigned.

    MurmurHash2 (A. Appleby) with the seed that Kafka's Java client fixes in `Utils.murmur2`.
    """
    length = len(key)
    value = (_SEED ^ length) & _WORD_MASK
    whole = length & ~3
    for start in range(0, whole, 4):
        word = int.from_bytes(key[start : start + 4], "little") * _MULTIPLIER & _WORD_MASK
        word = (word ^ (word >> _ROTATION)) * _MULTIPLIER & _WORD_MASK
        value = (value * _MULTIPLIER & _WORD_MASK) ^ word
    if whole != length:
        value = (value ^ int.from_bytes(key[whole:], "little")) * _MULTIPLIER & _WORD_MASK
    value = (value ^ (value >> 13)) * _MULTIPLIER & _WORD_MASK
    return value ^ (value >> 15)


@lru_cache(maxsize=_CACHED_KEYS)
def partition_for(key: str, partitions: int) -> int:
    """Return the partition of `key` among `partitions`, as Java's default partitioner gives it."""
    assert partitions > 0, "a topic has at least one partition"
    return (murmur2(key.encode()) & 0x7FFFFFFF) % partitions
