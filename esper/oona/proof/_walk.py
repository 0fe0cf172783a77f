"""The rolling digest of one partition beside the places that checkpoints signed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from esper.leyline import Record
from esper.oona.proof._digest import EMPTY, advance, record_hash
from esper.oona.proof._evidence import Boundary

#: Beyond every offset, which Kafka counts in 63 bits.
_NOWHERE: Final = 1 << 63


@dataclass(frozen=True)
class Mismatch:
    """Records from `start` to before the boundary are not those that it signed."""

    start: int
    boundary: Boundary


class SignedWalk:
    """Takes the records of one partition in order of offsets and compares at every signed place."""

    def __init__(self, boundaries: Sequence[Boundary], *, start: int, end: int) -> None:
        """Prepare the walk from offset `start`; boundaries beyond `end` are not looked at.

        `boundaries` are all that is signed of this partition, in order.
        """
        self._pending = [one for one in boundaries if start < one.next_offset <= end]
        self._at = 0
        #: The next signed place; one that no record reaches when there is none.
        self.next_signed = self._signed_at(0)
        self._behind = max((one.next_offset for one in boundaries if one.next_offset <= start), default=0)
        self._anew_at = self._begins_anew_at()
        self._digest = _digest_at(boundaries, start)
        self._start = start
        self._whole = True
        self._in_mismatch = False
        #: Everything before this offset agrees with what is signed, as far as it was read.
        self.proven_to = start if self._digest is not None else 0
        #: Records that lie in intervals which agree.
        self.covered = 0

    def take(self, record: Record) -> None:
        """Take in the next record; every signed place up to its offset must have been crossed."""
        if record.offset == self._anew_at:
            self._digest, self._start = EMPTY, record.offset
            self._behind = record.offset
            self._anew_at = _NOWHERE
        if self._digest is not None:
            self._digest = advance(self._digest, record_hash(record))

    def cross(self, offset: int) -> Iterator[Mismatch]:
        """Compare at the signed places that are not after `offset`; yield the first of each row of disagreements."""
        while self._at < len(self._pending) and self._pending[self._at].next_offset <= offset:
            boundary = self._pending[self._at]
            self._at += 1
            self.next_signed = self._signed_at(self._at)
            known = self._digest is not None
            agrees = not known or self._digest == boundary.digest
            mismatch = Mismatch(self._start, boundary)
            if known and agrees:
                self.covered += boundary.next_offset - self._start
            self._whole = self._whole and agrees
            if self._whole:
                self.proven_to = boundary.next_offset
            self._digest, self._start = boundary.digest, boundary.next_offset
            self._behind = max(self._behind, boundary.next_offset)
            self._anew_at = self._begins_anew_at()
            if not agrees and not self._in_mismatch:
                yield mismatch
            self._in_mismatch = not agrees

    def _signed_at(self, index: int) -> int:
        return self._pending[index].next_offset if index < len(self._pending) else _NOWHERE

    def beyond(self, offset: int) -> Boundary | None:
        """Return the last signed place after `offset`, if there is one."""
        left = self._pending[self._at :]
        return left[-1] if left and left[-1].next_offset > offset else None

    def _begins_anew_at(self) -> int:
        """Return where the writer began a new digest: what lay before was deleted by age, unread."""
        first = self._pending[self._at].first_offset if self._at < len(self._pending) else 0
        return first if first > self._behind else _NOWHERE


def _digest_at(boundaries: Sequence[Boundary], start: int) -> bytes | None:
    """Return the digest before offset `start`: of nothing, or as signed; None when neither is known."""
    if start == 0:
        return EMPTY
    return next((one.digest for one in boundaries if one.next_offset == start), None)
