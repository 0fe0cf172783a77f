"""From records to a batch that can be folded: verified, decoded once for all projections, or discarded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa

from esper.leyline import Allowed, BadRecord, KeyRing, Record, open_record
from esper.leyline import messages as ly
from esper.oona import Position
from esper.projection._columns import TIMESTAMP
from esper.projection._decoder import Decoder

#: What stands before a message's own columns in the batch of its type.
PLACE_SCHEMA: Final = pa.schema(
    [("topic_partition", pa.int32()), ("record_offset", pa.int64()), ("append_time", TIMESTAMP)]
)
_REASON_PREFIX: Final = "DEAD_LETTER_REASON_"


@dataclass(frozen=True)
class Judged:
    """One record and what is known of it.

    Either `bad` says why it must not be believed, or it is authentic and `type_name`, `event_id` hold.
    """

    record: Record
    type_name: str = ""
    event_id: str = ""
    #: The run's attempt, for events that have one: two attempts name their events alike on purpose.
    attempt: int | None = None
    #: Its row in the batch's table of its type; None where nobody wanted it decoded.
    row: int | None = None
    bad: BadRecord | None = None
    producer_id: str = ""
    #: From 1 within its producer and partition.
    sequence: int = 0

    @property
    def place(self) -> Position:
        """Topic and partition."""
        return (self.record.topic, self.record.partition)

    @property
    def reason(self) -> str:
        """The contract's word for what is wrong, without its prefix; empty for an authentic record."""
        return "" if self.bad is None else ly.DeadLetterReason.Name(self.bad.reason).removeprefix(_REASON_PREFIX)


@dataclass(frozen=True)
class Batch:
    """Records in the order in which they were read, and the rows of those that somebody takes."""

    judged: Sequence[Judged]
    #: Full type name -> `PLACE_SCHEMA` and the message's canonical columns.
    rows: Mapping[str, pa.Table]


class Admission:
    """Verifies and decodes; remembers nothing, so that the same records always give the same batch."""

    def __init__(self, *, keyring: KeyRing, allowed: Allowed, wanted: Collection[str], decoder: Decoder) -> None:
        """Decode the types in `wanted` (full names) only."""
        self._keyring = keyring
        self._allowed = allowed
        self._wanted = frozenset(wanted)
        self._decoder = decoder

    def admit(self, records: Sequence[Record]) -> Batch:
        """Return the batch of `records`."""
        judged = [self._judge(record) for record in records]
        indices: dict[str, list[int]] = defaultdict(list)
        for index, one in enumerate(judged):
            if one.bad is None and one.type_name in self._wanted:
                indices[one.type_name].append(index)
        rows = {name: self._decode(name, places, judged) for name, places in indices.items()}
        return Batch(judged, rows)

    def _judge(self, record: Record) -> Judged:
        try:
            meta = open_record(record, keyring=self._keyring, allowed=self._allowed)
        except BadRecord as bad:
            return Judged(record, bad=bad)
        return Judged(
            record, type_name=meta.type, event_id=meta.event_id, producer_id=meta.producer_id, sequence=meta.sequence
        )

    def _decode(self, type_name: str, indices: Sequence[int], judged: list[Judged]) -> pa.Table:
        """Decode the records at `indices`; note in `judged` each one's row, or what is wrong with it."""
        values = [judged[index].record.value or b"" for index in indices]
        decoded = self._decoder.decode(type_name, values)
        for number, detail in decoded.bad.items():
            bad = BadRecord(ly.DEAD_LETTER_REASON_UNDECODABLE, detail)
            judged[indices[number]] = Judged(judged[indices[number]].record, bad=bad)
        names = decoded.rows.schema.names
        attempts = decoded.rows.column("attempt").to_pylist() if "attempt" in names else [None] * len(decoded.good)
        good = [indices[number] for number in decoded.good]
        for row, (index, attempt) in enumerate(zip(good, attempts, strict=True)):
            one = judged[index]
            judged[index] = replace(one, attempt=attempt, row=row)
        return _with_places([judged[index].record for index in good], decoded.rows)


def _with_places(records: Sequence[Record], rows: pa.RecordBatch) -> pa.Table:
    columns = [
        pa.array([record.partition for record in records], PLACE_SCHEMA.field(0).type),
        pa.array([record.offset for record in records], PLACE_SCHEMA.field(1).type),
        pa.array([record.append_time_ms * 1_000 for record in records], PLACE_SCHEMA.field(2).type),
        *rows.columns,
    ]
    return pa.Table.from_arrays(columns, schema=pa.schema([*PLACE_SCHEMA, *rows.schema]))
