"""Many records at once, a list for each of their fields: no object is made of a record that nobody looks at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

from esper.leyline.records import Headers, Record


@dataclass(frozen=True, slots=True)
class RecordColumns:
    """`n` records, exactly as they were read; every sequence has `n` elements, in the order of reading.

    Objects cost more than their bytes: of those that live on, the garbage collector visits each again and again.
    """

    topic: Sequence[str]
    partition: Sequence[int]
    offset: Sequence[int]
    key: Sequence[bytes | None]
    value: Sequence[bytes | None]
    headers: Sequence[Headers]
    append_time_ms: Sequence[int]

    @classmethod
    def of(cls, records: Sequence[Record]) -> Self:
        """Return the columns of `records`."""
        return cls(
            [record.topic for record in records],
            [record.partition for record in records],
            [record.offset for record in records],
            [record.key for record in records],
            [record.value for record in records],
            [record.headers for record in records],
            [record.append_time_ms for record in records],
        )

    def __len__(self) -> int:
        return len(self.offset)

    def __getitem__(self, part: slice) -> RecordColumns:
        """Return a range of them."""
        return RecordColumns(*(getattr(self, name)[part] for name in self.__slots__))

    def record(self, index: int) -> Record:
        """Return one of them by itself."""
        return Record(
            self.topic[index],
            self.partition[index],
            self.offset[index],
            self.key[index],
            self.value[index],
            self.headers[index],
            self.append_time_ms[index],
        )

    def records(self) -> Iterator[Record]:
        """Yield each of them by itself."""
        return map(self.record, range(len(self)))


NO_RECORDS: Final = RecordColumns((), (), (), (), (), (), ())
