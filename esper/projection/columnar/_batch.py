"""A batch of records as columns: what is known of each, in the order in which they were read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from esper.leyline import Record
from esper.oona import Position
from esper.projection.records._judged import Judged

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

#: In `Batch.kind`, of a record that must not be believed.
BAD = -1


@dataclass(frozen=True)
class Batch:
    """`n` records, verified and decoded; every array has `n` elements."""

    #: The partitions that occur, and of each record the place of its own among them.
    places: Sequence[Position]
    place: Int32s
    offset: Int64s
    #: Milliseconds since the Unix epoch, as the broker appended them.
    append_ms: Int64s
    #: Full names of the types that occur, and of each record the place of its own among them, or `BAD`.
    kinds: Sequence[str]
    kind: Int32s
    #: Row in the table of its type; -1 where nobody wanted it decoded.
    row: Int64s
    #: string[n], empty where bad.
    event_id: pa.Array
    #: uint32[n], null for events that belong to no attempt of a run.
    attempt: pa.Array
    #: The producers that occur, and of each record the place of its own among them.
    producers: Sequence[str]
    producer: Int32s
    sequence: UInt64s
    #: Index -> why it must not be believed.
    bad: Mapping[int, Judged]
    #: Full type name -> `PLACE_SCHEMA` and the message's canonical columns.
    rows: Mapping[str, pa.Table]

    def __len__(self) -> int:
        return len(self.offset)

    def judged(self, index: int) -> Judged:
        """Return one record by itself; of a good one its place, not its bytes."""
        if index in self.bad:
            return self.bad[index]
        row, (topic, partition) = int(self.row[index]), self.places[int(self.place[index])]
        return Judged(
            Record(topic, partition, int(self.offset[index]), None, None),
            type_name=self.kinds[self.kind[index]],
            event_id=self.event_id[index].as_py(),
            attempt=self.attempt[index].as_py(),
            row=row if row >= 0 else None,
            producer_id=self.producers[self.producer[index]],
            sequence=int(self.sequence[index]),
        )


def out_of_order(batch: Batch, indices: Int64s) -> tuple[Position, int, int] | None:
    """Return a partition, and two offsets of it that follow each other in a batch and not in the log, if there are."""
    order = indices[np.argsort(batch.place[indices], kind="stable")]
    same = batch.place[order[1:]] == batch.place[order[:-1]]
    wrong = np.flatnonzero(same & (batch.offset[order[1:]] <= batch.offset[order[:-1]]))
    if not len(wrong):
        return None
    before, after = int(order[wrong[0]]), int(order[wrong[0] + 1])
    return batch.places[int(batch.place[before])], int(batch.offset[before]), int(batch.offset[after])
