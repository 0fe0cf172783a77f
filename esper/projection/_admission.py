"""From records to a batch that can be folded: verified, decoded once for all projections, or discarded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from esper.leyline import (
    EVENT_TYPES,
    SIGNATURE_BYTES,
    SIGNER_TYPES,
    Allowed,
    Authenticator,
    BadRecord,
    KeyRing,
    Record,
    open_record,
)
from esper.projection._columns import TIMESTAMP
from esper.projection._decoder import ANY_EVENT, Decoder
from esper.projection._judged import Judged
from esper.projection.columnar._acquittal import Mask, acquitted
from esper.projection.columnar._batch import Batch, Int64s
from esper.projection.columnar._batching import Gathered, Part, gathered, joined

#: What stands before a message's own columns in the batch of its type.
PLACE_SCHEMA: Final = pa.schema(
    [("topic_partition", pa.int32()), ("record_offset", pa.int64()), ("append_time", TIMESTAMP)]
)


@dataclass
class _Signed:
    """The records of one type, or of all unwanted ones, whose signatures hold."""

    indices: list[int]
    keys: list[str]
    types: list[str]
    values: list[bytes]
    #: Indices of those that the columns cannot acquit: `open_record` judges them, whatever they hold.
    doubtful: set[int]

    def only(self, numbers: Sequence[int]) -> _Signed:
        """Return these of them."""
        return _Signed(
            [self.indices[number] for number in numbers],
            [self.keys[number] for number in numbers],
            [self.types[number] for number in numbers],
            [self.values[number] for number in numbers],
            self.doubtful,
        )


class Admission:
    """Verifies and decodes; remembers nothing, so that the same records always give the same batch."""

    def __init__(self, *, keyring: KeyRing, allowed: Allowed, wanted: Collection[str], decoder: Decoder) -> None:
        """Decode the types in `wanted` (full names) only."""
        self._keyring = keyring
        self._authenticator = Authenticator(keyring)
        self._allowed = allowed
        self._wanted = frozenset(wanted)
        self._decoder = decoder

    def admit(self, records: Sequence[Record]) -> Batch:
        """Return the batch of `records`."""
        found = gathered(records)
        bad: dict[int, BadRecord] = {}
        parts = [self._part(kind, signed, records, found, bad) for kind, signed in self._signed(records, bad).items()]
        return joined(found, parts, {index: Judged(records[index], bad=why) for index, why in bad.items()})

    def _signed(self, records: Sequence[Record], bad: dict[int, BadRecord]) -> dict[str, _Signed]:
        """Check signatures; return the good records by the type whose columns they need."""
        groups: dict[str, _Signed] = defaultdict(lambda: _Signed([], [], [], [], set()))
        authenticate, wanted = self._authenticator.authenticate, self._wanted
        strict = SIGNER_TYPES if self._keyring.keys.signers_required else frozenset[str]()
        for index, record in enumerate(records):
            try:
                key, type_name, signature, value = authenticate(record)
            except BadRecord as why:
                bad[index] = why
                continue
            group = groups[type_name if type_name in wanted else ANY_EVENT]
            group.indices.append(index)
            group.keys.append(key)
            group.types.append(type_name)
            group.values.append(value)
            if len(signature) != SIGNATURE_BYTES or type_name in strict or type_name not in EVENT_TYPES:
                group.doubtful.add(index)
        return groups

    def _part(
        self, kind: str, signed: _Signed, records: Sequence[Record], found: Gathered, bad: dict[int, BadRecord]
    ) -> Part:
        """Decode the records of one group; note in `bad` those that must not be believed after all."""
        decoded = self._decoder.decode(kind, signed.values)
        for number, why in decoded.bad.items():
            index = signed.indices[number]
            bad[index] = self._refusal(records[index]) or why
        group = signed if len(decoded.good) == len(signed.indices) else signed.only(decoded.good)
        good = self._good(kind, group, decoded.rows, records, found, bad)
        rows = decoded.rows
        if not good.all():
            kept = np.flatnonzero(good)
            group, rows = group.only(kept.tolist()), rows.take(pa.array(kept))
        indices = np.array(group.indices, dtype=np.int64)
        types = group.types if kind == ANY_EVENT else kind
        return Part(types, indices, rows.column("meta"), _attempts(rows), _placed(indices, rows, found, kind))

    def _good(
        self,
        kind: str,
        group: _Signed,
        rows: pa.RecordBatch,
        records: Sequence[Record],
        found: Gathered,
        bad: dict[int, BadRecord],
    ) -> Mask:
        """Return which rows may be believed; those that the columns do not acquit are judged one by one."""
        indices = np.array(group.indices, dtype=np.int64)
        good = acquitted(
            rows.column("meta"),
            keys=group.keys,
            types=group.types if kind == ANY_EVENT else kind,
            places=found.places,
            place=found.place[indices],
            append_ms=found.append_ms[indices],
            allowed=self._allowed,
        )
        if group.doubtful:
            good &= ~np.isin(indices, list(group.doubtful))
        for row in np.flatnonzero(~good).tolist():
            index = group.indices[row]
            refusal = self._refusal(records[index])
            good[row] = refusal is None
            if refusal is not None:
                bad[index] = refusal
        return good

    def _refusal(self, record: Record) -> BadRecord | None:
        try:
            open_record(record, keyring=self._keyring, allowed=self._allowed)
        except BadRecord as bad:
            return bad
        return None


def _attempts(rows: pa.RecordBatch) -> pa.Array:
    if "attempt" in rows.schema.names:
        return rows.column("attempt")
    return pa.nulls(len(rows), pa.uint32())


def _placed(indices: Int64s, rows: pa.RecordBatch, found: Gathered, kind: str) -> pa.Table | None:
    """Return rows with their places before them; none of events that nobody wants."""
    if kind == ANY_EVENT:
        return None
    columns = [
        pa.array(found.partition[indices], PLACE_SCHEMA.field(0).type),
        pa.array(found.offset[indices], PLACE_SCHEMA.field(1).type),
        pa.array(found.append_ms[indices] * 1_000, pa.int64()).cast(TIMESTAMP),
        *rows.columns,
    ]
    return pa.Table.from_arrays(columns, schema=pa.schema([*PLACE_SCHEMA, *rows.schema]))
