"""Which events a projection applied before, as far as a filter can tell: never a miss, hardly ever a false alarm.

Every event leaves 8 bytes. They are kept in sorted runs, merged as they grow (O'Neil et al. 1996, "The log-structured
merge-tree"), so that ten million events cost 80 MB and a batch is looked up in milliseconds. A hit is no verdict: the
ledger is asked for the event itself.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from esper.oona import Position
from esper.projection.columnar._batch import UInt64s

_WORD: Final = np.uint64
_ID_BYTES: Final = 32
_WORDS: Final = 4
#: Odd constants of splitmix64 (Steele et al. 2014, "Fast splittable pseudorandom number generators").
_GAMMA: Final = _WORD(0x9E3779B97F4A7C15)
_MIX_1: Final = _WORD(0xBF58476D1CE4E5B9)
_MIX_2: Final = _WORD(0x94D049BB133111EB)


def place_word(place: Position) -> int:
    """Return 64 bits for a partition."""
    return int.from_bytes(hashlib.sha256(f"{place[0]}/{place[1]}".encode()).digest()[:8], "little")


def fingerprints(event_id: pa.Array, attempt: pa.Array, places: UInt64s) -> UInt64s:
    """Return 64 bits for each event: of its id, its attempt or none, and its partition's `place_word`."""
    words = _id_words(event_id)
    state = places.copy()
    for column in range(_WORDS):
        state = _mixed(state ^ words[:, column])
    numbers = attempt.fill_null(0).to_numpy(zero_copy_only=False).astype(np.uint64)
    attempts = np.where(attempt.is_valid().to_numpy(zero_copy_only=False), numbers + _WORD(1), _WORD(0))
    return _mixed(state ^ (attempts * _GAMMA))


def _mixed(state: UInt64s) -> UInt64s:
    state = (state ^ (state >> _WORD(30))) * _MIX_1
    state = (state ^ (state >> _WORD(27))) * _MIX_2
    return np.asarray(state ^ (state >> _WORD(31)), dtype=np.uint64)


def _id_words(event_id: pa.Array) -> UInt64s:
    """Return four words of each id: its own 32 bytes, or those of a digest where it has more or fewer."""
    lengths = pc.binary_length(event_id)
    if len(event_id) and pc.min_max(lengths) != {"min": _ID_BYTES, "max": _ID_BYTES}:
        plain = [one.encode() for one in event_id.to_pylist()]
        sized = [one if len(one) == _ID_BYTES else hashlib.sha256(one).digest() for one in plain]
        return np.frombuffer(b"".join(sized), dtype=np.uint64).reshape(-1, _WORDS)
    data = event_id.buffers()[2]
    begin = event_id.offset * _ID_BYTES + (_first_offset(event_id) - event_id.offset * _ID_BYTES)
    return np.frombuffer(data, dtype=np.uint64, count=len(event_id) * _WORDS, offset=begin).reshape(-1, _WORDS)


def _first_offset(array: pa.Array) -> int:
    """Return where the first string's bytes begin in the buffer."""
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int32, count=1, offset=array.offset * 4)
    return int(offsets[0])


class KnownEvents:
    """Fingerprints in sorted runs, each at least twice as long as the next."""

    def __init__(self) -> None:
        self._runs: list[UInt64s] = []

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def add(self, new: UInt64s) -> None:
        """Remember events."""
        if not len(new):
            return
        self._runs.append(np.sort(new))
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):  # ends: each turn merges two
            last = self._runs.pop()
            merged = np.concatenate([self._runs.pop(), last])
            merged.sort()  # Where it lies: a copy would be another 8 bytes an event.
            self._runs.append(merged)

    def any_of(self, ascending: UInt64s) -> bool:
        """Return whether one of these, given in ascending order, may be known."""
        return any(self._hits(run, ascending) for run in self._runs)

    @staticmethod
    def _hits(run: UInt64s, ascending: UInt64s) -> bool:
        at = np.searchsorted(run, ascending)
        at[at == len(run)] = 0
        return bool((run[at] == ascending).any())
