"""What is wrong with a log, in words, and where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypedDict

from esper.leyline import messages as ly
from esper.oona._cluster import Position


class Kind(StrEnum):
    """What is wrong with a record, or with the place where one should be."""

    UNSIGNED = "unsigned"
    UNKNOWN_KEY = "unknown_key"
    REVOKED_KEY = "revoked_key"
    BAD_SIGNATURE = "bad_signature"
    WRONG_SIGNER = "wrong_signer"
    EMPTY = "empty"
    TOO_LARGE = "too_large"
    UNDECODABLE = "undecodable"
    UNKNOWN_TYPE = "unknown_type"
    INCONSISTENT = "inconsistent"
    FUTURE_TIME = "future_time"
    #: The topic does not take this type, or not from this source.
    WRITER = "writer"
    #: Records of a producer, or offsets, are missing before this place.
    GAP = "gap"
    #: Stands before or after its place in its producer's chain.
    REORDER = "reorder"
    DUPLICATE = "duplicate"
    #: Claims a place in a chain that another record holds.
    FOREIGN = "foreign"
    #: The log ends, or begins, where a checkpoint or its topic's file says that there were records.
    TRUNCATED = "truncated"
    #: The topic was deleted and made again.
    REPLACED = "replaced"
    #: The bytes are not those that a checkpoint signed, or a checkpoint itself is missing or forged.
    CHECKPOINT = "checkpoint"
    #: A bundle is not what its exporter sealed, or cannot be read.
    BUNDLE = "bundle"
    #: A blob is not what its name says.
    BLOB = "blob"


_KINDS: Final[dict[int, Kind]] = {
    ly.DEAD_LETTER_REASON_UNSIGNED: Kind.UNSIGNED,
    ly.DEAD_LETTER_REASON_UNKNOWN_KEY: Kind.UNKNOWN_KEY,
    ly.DEAD_LETTER_REASON_BAD_SIGNATURE: Kind.BAD_SIGNATURE,
    ly.DEAD_LETTER_REASON_EMPTY: Kind.EMPTY,
    ly.DEAD_LETTER_REASON_UNDECODABLE: Kind.UNDECODABLE,
    ly.DEAD_LETTER_REASON_UNKNOWN_TYPE: Kind.UNKNOWN_TYPE,
    ly.DEAD_LETTER_REASON_NOT_ALLOWED: Kind.WRITER,
    ly.DEAD_LETTER_REASON_INCONSISTENT: Kind.INCONSISTENT,
    ly.DEAD_LETTER_REASON_TOO_LARGE: Kind.TOO_LARGE,
    ly.DEAD_LETTER_REASON_REVOKED_KEY: Kind.REVOKED_KEY,
    ly.DEAD_LETTER_REASON_WRONG_SIGNER: Kind.WRONG_SIGNER,
    ly.DEAD_LETTER_REASON_FUTURE_TIME: Kind.FUTURE_TIME,
}


def kind_of(reason: ly.DeadLetterReason) -> Kind:
    """Return the word for a reason why a record must not be believed; raises KeyError for any other reason."""
    return _KINDS[reason]


class BadPlace(TypedDict):
    """A finding as `esper verify --json` lists it."""

    topic: str
    partition: int
    offset: int
    kind: str


@dataclass
class Finding:
    """One fault. What follows in the log may still show a better kind or an earlier offset of it."""

    topic: str
    partition: int
    offset: int
    kind: Kind
    detail: str
    #: Everything of the partition before this offset agrees with a signed checkpoint; the fault is not there.
    proven_to: int = 0

    def place(self) -> BadPlace:
        """Return where it is and what."""
        return BadPlace(topic=self.topic, partition=self.partition, offset=self.offset, kind=self.kind.value)

    def document(self) -> dict[str, object]:
        """Return all of it as plain data."""
        return {**self.place(), "detail": self.detail, "proven_to": self.proven_to}


#: A log that was overwritten holds as many faults as records; so many are listed, the rest is counted.
_LISTED_MAX: Final = 1_000


class Findings:
    """The faults of a log; the first ones of each partition are kept, all are counted."""

    def __init__(self, limit: int = _LISTED_MAX) -> None:
        self._limit = limit
        self._listed: list[Finding] = []
        self._count_by_place: dict[Position, int] = {}

    @property
    def total(self) -> int:
        """How many faults there are, listed or not."""
        return sum(self._count_by_place.values())

    def add(self, finding: Finding) -> Finding:
        """Take a fault in and return it."""
        place = (finding.topic, finding.partition)
        first = place not in self._count_by_place
        self._count_by_place[place] = self._count_by_place.get(place, 0) + 1
        if first or len(self._listed) < self._limit:
            self._listed.append(finding)
        return finding

    def merge(self, listed: Iterable[Finding], counts: Mapping[Position, int]) -> None:
        """Take in what another walk found: its listed faults, and how many there are in each partition."""
        self._listed += listed
        for place, count in counts.items():
            self._count_by_place[place] = self._count_by_place.get(place, 0) + count

    def counts(self) -> dict[Position, int]:
        """Return how many faults each partition has."""
        return dict(self._count_by_place)

    def __iter__(self) -> Iterator[Finding]:
        """Yield the listed faults by topic, partition and offset."""
        return iter(sorted(self._listed, key=lambda one: (one.topic, one.partition, one.offset)))
