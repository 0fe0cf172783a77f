"""Records on their way into a batch: their signatures checked as they come, and of each kept what is still needed.

What many records share, their partition, key and type, is kept once and as a number of each. So no object lives on
for a record but its value and its signature, which the garbage collector does not have to visit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from esper.leyline import Authenticator, Finding, Record, RecordColumns
from esper.oona import Position
from esper.projection.columnar._batch import Int32s, Int64s


@dataclass(frozen=True)
class Gathered:
    """`n` records whose signatures were checked; every array and list of a record's own parts has `n` elements."""

    #: What was found, and of each record the place of its own among them.
    findings: Sequence[Finding]
    finding: Int32s
    #: The partitions that occur, and of each record the place of its own among them.
    places: Sequence[Position]
    place: Int32s
    partition: Int32s
    offset: Int64s
    #: Milliseconds since the Unix epoch, as the broker appended them.
    append_ms: Int64s
    values: Sequence[bytes | None]
    signatures: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.offset)

    def record(self, index: int) -> Record:
        """Return one record as it was read."""
        finding: Finding = self.findings[self.finding[index]]
        value, signature = self.values[index] or b"", self.signatures[index]
        return finding.rebuilt(int(self.offset[index]), value, signature, int(self.append_ms[index]))


class _Codes(dict[Finding, int]):
    """Numbers findings in the order in which they are first asked for."""

    def __missing__(self, finding: Finding) -> int:
        self[finding] = code = len(self)
        return code


class Gathering:
    """Grows by what is read; one thread at a time."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._codes = _Codes()
        self._finding: list[Int32s] = []
        self._offset: list[Int64s] = []
        self._append_ms: list[Int64s] = []
        self._values: list[bytes | None] = []
        self._signatures: list[bytes] = []
        self.value_bytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def add(self, records: RecordColumns) -> None:
        """Check the signatures of records and take them in."""
        findings, signatures = self._authenticator.authenticate_all(records)
        self._finding.append(np.fromiter(map(self._codes.__getitem__, findings), np.int32, len(findings)))
        self._offset.append(np.array(records.offset, dtype=np.int64))
        self._append_ms.append(np.array(records.append_time_ms, dtype=np.int64))
        self._values += records.value
        self._signatures += signatures
        self.value_bytes += sum(map(len, filter(None, records.value)))

    def gathered(self) -> Gathered:
        """Return what was taken in."""
        places: dict[Position, int] = {}
        codes = [places.setdefault((one.topic, one.partition), len(places)) for one in self._codes]
        finding = np.concatenate([np.zeros(0, dtype=np.int32), *self._finding])
        place = _taken(codes, finding)
        partition = _taken([number for _, number in places], place)
        return Gathered(
            list(self._codes),
            finding,
            list(places),
            place,
            partition,
            np.concatenate([np.zeros(0, dtype=np.int64), *self._offset]),
            np.concatenate([np.zeros(0, dtype=np.int64), *self._append_ms]),
            self._values,
            self._signatures,
        )


def _taken(numbers: Sequence[int], codes: Int32s) -> Int32s:
    """Return the number of each code; there may be neither."""
    return np.array([*numbers, 0], dtype=np.int32)[codes]
