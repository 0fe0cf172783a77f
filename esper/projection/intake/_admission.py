"""From records to a batch that can be folded: verified, decoded once for all projections, or discarded."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from operator import itemgetter
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
    Finding,
    KeyRing,
    open_record,
)
from esper.leyline.records import signature_of
from esper.projection.columnar._acquittal import Mask, acquitted
from esper.projection.columnar._batch import Batch, Int64s
from esper.projection.columnar._batching import Part, joined
from esper.projection.columnar._gathering import Gathered, Gathering
from esper.projection.records._columns import TIMESTAMP
from esper.projection.records._decoder import ANY_EVENT, Decoder
from esper.projection.records._judged import Judged

#: What stands before a message's own columns in the batch of its type.
PLACE_SCHEMA: Final = pa.schema(
    [("topic_partition", pa.int32()), ("record_offset", pa.int64()), ("append_time", TIMESTAMP)]
)


@dataclass(frozen=True)
class _Group:
    """The records of one type, or of all unwanted ones, whose signatures hold; arrays have an element for each."""

    kind: str
    indices: Int64s
    keys: pa.Array
    #: Full names, as the headers say; one where all are of it.
    types: pa.Array | str
    #: Those that the columns cannot acquit: `open_record` judges them, whatever they hold.
    doubtful: Mask

    def only(self, numbers: Sequence[int] | Int64s) -> _Group:
        """Return these of them."""
        chosen = np.asarray(numbers, dtype=np.int64)
        arrow = pa.array(chosen)
        types = self.types if isinstance(self.types, str) else self.types.take(arrow)
        return _Group(self.kind, self.indices[chosen], self.keys.take(arrow), types, self.doubtful[chosen])


class Admission:
    """Verifies and decodes; remembers nothing, so that the same records always give the same batch."""

    def __init__(self, *, keyring: KeyRing, allowed: Allowed, wanted: Collection[str], decoder: Decoder) -> None:
        """Decode the types in `wanted` (full names) only."""
        self._keyring = keyring
        self._authenticator = Authenticator(keyring)
        self._allowed = allowed
        self._wanted = frozenset(wanted)
        self._decoder = decoder

    def gathering(self) -> Gathering:
        """Return what takes in records for a batch; signatures are checked there."""
        return Gathering(self._authenticator)

    def admit(self, gathering: Gathering) -> Batch:
        """Return the batch of what was gathered."""
        found = gathering.gathered()
        judged = [(code, one.bad) for code, one in enumerate(found.findings) if one.bad is not None]
        bad: dict[int, BadRecord] = {
            index: why for code, why in judged for index in np.flatnonzero(found.finding == code).tolist()
        }
        parts = [self._part(group, found, bad) for group in self._groups(found)]
        return joined(found, parts, {index: Judged(found.record(index), bad=why) for index, why in bad.items()})

    def _groups(self, found: Gathered) -> list[_Group]:
        """Return the good records by the type whose columns they need."""
        good = [(code, one) for code, one in enumerate(found.findings) if one.bad is None]
        kinds: dict[str, list[int]] = {}
        for code, one in good:
            kinds.setdefault(one.type_name if one.type_name in self._wanted else ANY_EVENT, []).append(code)
        strict = SIGNER_TYPES if self._keyring.keys.signers_required else frozenset[str]()
        doubtful = np.array([_is_doubtful(one, strict) for one in found.findings], dtype=np.bool_)
        keys = pa.array([one.key for one in found.findings], pa.string())
        types = pa.array([one.type_name for one in found.findings], pa.string())
        groups = []
        for kind, codes in kinds.items():
            mine = np.zeros(len(found.findings), dtype=np.bool_)
            mine[codes] = True
            indices = np.flatnonzero(mine[found.finding])
            finding = found.finding[indices]
            arrow = pa.array(finding)
            named = types.take(arrow) if kind == ANY_EVENT else kind
            groups.append(_Group(kind, indices, keys.take(arrow), named, doubtful[finding]))
        return groups

    def _part(self, group: _Group, found: Gathered, bad: dict[int, BadRecord]) -> Part:
        """Decode the records of one group; note in `bad` those that must not be believed after all."""
        decoded = self._decoder.decode(group.kind, _chosen(found.values, group.indices))
        for number, why in decoded.bad.items():
            index = int(group.indices[number])
            bad[index] = self._refusal(found, index) or why
        rows = decoded.rows
        if len(decoded.good) != len(group.indices):
            group = group.only(decoded.good)
        good = self._good(group, rows, found, bad)
        if not good.all():
            kept = np.flatnonzero(good)
            group, rows = group.only(kept), rows.take(pa.array(kept))
        placed = None if group.kind == ANY_EVENT else _placed(group.indices, rows, found)
        return Part(group.types, group.indices, rows.column("meta"), _attempts(rows), placed)

    def _good(self, group: _Group, rows: pa.RecordBatch, found: Gathered, bad: dict[int, BadRecord]) -> Mask:
        """Return which rows may be believed; those that the columns do not acquit are judged one by one."""
        good = ~group.doubtful & acquitted(
            rows.column("meta"),
            keys=group.keys,
            types=group.types,
            places=found.places,
            place=found.place[group.indices],
            append_ms=found.append_ms[group.indices],
            allowed=self._allowed,
        )
        for row in np.flatnonzero(~good).tolist():
            index = int(group.indices[row])
            refusal = self._refusal(found, index)
            good[row] = refusal is None
            if refusal is not None:
                bad[index] = refusal
        return good

    def _refusal(self, found: Gathered, index: int) -> BadRecord | None:
        try:
            open_record(found.record(index), keyring=self._keyring, allowed=self._allowed)
        except BadRecord as bad:
            return bad
        return None


def _is_doubtful(finding: Finding, strict: Collection[str]) -> bool:
    """Return whether more must be asked of such records than whether their columns fit."""
    if finding.bad is not None or finding.type_name in strict or finding.type_name not in EVENT_TYPES:
        return True
    # What went the quick way has a MAC; of others it is looked up.
    return finding.record is not None and len(signature_of(finding.record)) != SIGNATURE_BYTES


def _chosen(values: Sequence[bytes | None], indices: Int64s) -> list[bytes]:
    """Return the values of good records, which all have one."""
    if not len(indices):
        return []
    chosen = itemgetter(*indices.tolist())(values)
    return list(chosen) if len(indices) > 1 else [chosen]


def _attempts(rows: pa.RecordBatch) -> pa.Array:
    if "attempt" in rows.schema.names:
        return rows.column("attempt")
    return pa.nulls(len(rows), pa.uint32())


def _placed(indices: Int64s, rows: pa.RecordBatch, found: Gathered) -> pa.Table:
    """Return rows with their places before them."""
    columns = [
        pa.array(found.partition[indices], PLACE_SCHEMA.field(0).type),
        pa.array(found.offset[indices], PLACE_SCHEMA.field(1).type),
        pa.array(found.append_ms[indices] * 1_000, pa.int64()).cast(TIMESTAMP),
        *rows.columns,
    ]
    return pa.Table.from_arrays(columns, schema=pa.schema([*PLACE_SCHEMA, *rows.schema]))
