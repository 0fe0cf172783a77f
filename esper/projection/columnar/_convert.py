"""From the columns of `ptars` to the canonical ones (`esper.projection.records._columns`), or to a doubt.

The two decoders must agree to the last bit, so whatever the raw columns cannot tell apart is a doubt, and the rows that
it may concern are decoded by protobuf itself: more than one member of a oneof, keys of a map that come twice, a time
out of range, a Struct. Doubts are rare; what is certain costs a twentieth of protobuf's time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from esper.projection.columnar._wire import NANOS, SECONDS
from esper.projection.records._columns import (
    NANOS_PER_SECOND,
    SECONDS_MAX,
    SECONDS_MIN,
    TIMESTAMP,
    arrow_schema,
    field_type,
    fields_of,
    is_json,
    is_map,
    is_timestamp,
    item_type,
    map_fields,
)

_Int64s = npt.NDArray[np.int64]
#: Enums beyond that are named one by one.
_ENUM_NUMBERS_MAX: Final = 4_096
_DEFAULTS: Final[dict[int, object]] = {FieldDescriptor.TYPE_BYTES: b"", FieldDescriptor.TYPE_STRING: ""}


class Doubt(Exception):
    """Some row may mean something else than its columns say; `reason` tells what."""


def canonical(descriptor: Descriptor, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return raw columns of messages as canonical ones.

    Raises:
        Doubt: a row cannot be converted with certainty.
    """
    _check_oneofs(descriptor, batch.column)
    arrays = [_column(field, batch.column(field.name)) for field in fields_of(descriptor)]
    return pa.RecordBatch.from_arrays(arrays, schema=arrow_schema(descriptor))


def _column(field: FieldDescriptor, raw: pa.Array) -> pa.Array:
    if is_map(field):
        return _map(field, raw)
    if field.is_repeated:
        values = _items(field, raw.values)
        return pa.ListArray.from_arrays(raw.offsets, values, type=field_type(field), mask=_absent(raw))
    return _items(field, raw)


def _absent(raw: pa.Array) -> pa.Array | None:
    return raw.is_null() if raw.null_count else None


def _items(field: FieldDescriptor, raw: pa.Array) -> pa.Array:
    """Return single values."""
    if field.message_type is not None:
        return _messages(field.message_type, raw)
    if field.enum_type is not None:
        return _enum_names(field.enum_type, raw)
    if raw.null_count and not field.has_presence:
        raw = _with_defaults(field, raw)
    return raw if raw.type == item_type(field) else raw.cast(item_type(field))


def _with_defaults(field: FieldDescriptor, raw: pa.Array) -> pa.Array:
    """Give back the empty values that the decoder makes null; within an absent message they stay out of sight."""
    return raw.fill_null(_DEFAULTS[field.type]) if field.type in _DEFAULTS else raw


def _messages(descriptor: Descriptor, raw: pa.Array) -> pa.Array:
    if is_timestamp(descriptor):
        return _timestamps(raw)
    if is_json(descriptor):
        if raw.null_count != len(raw):
            raise Doubt(f"a {descriptor.full_name} is present")
        return pa.nulls(len(raw), pa.string())
    _check_oneofs(descriptor, raw.field)
    children = [_column(field, raw.field(field.name)) for field in fields_of(descriptor)]
    kind = arrow_schema(descriptor)
    return pa.StructArray.from_arrays(children, fields=list(kind), mask=_absent(raw))


def _timestamps(raw: pa.Array) -> pa.Array:
    absent = raw.is_null().to_numpy(zero_copy_only=False) if raw.null_count else None
    seconds, nanos = _int64s(raw.field(SECONDS)), _int64s(raw.field(NANOS))
    good = (seconds >= SECONDS_MIN) & (seconds <= SECONDS_MAX) & (nanos >= 0) & (nanos < NANOS_PER_SECOND)
    if not (good if absent is None else good | absent).all():
        raise Doubt("a timestamp is out of range")
    return pa.array(seconds * 1_000_000 + nanos // 1_000, pa.int64(), mask=absent).cast(TIMESTAMP)


def _int64s(array: pa.Array) -> _Int64s:
    filled = array.fill_null(0) if array.null_count else array
    return np.asarray(filled.to_numpy(zero_copy_only=False), dtype=np.int64)


def _enum_names(enum: EnumDescriptor, raw: pa.Array) -> pa.Array:
    numbers = _int64s(raw)
    mask = raw.is_null().to_numpy(zero_copy_only=False) if raw.null_count else None
    names, places = _named(enum)
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= len(places) or (places[numbers] < 0).any()):
        return _uncommon_names(enum, numbers, mask)
    indices = pa.array(places[numbers], pa.int32(), mask=mask)
    return pa.DictionaryArray.from_arrays(indices, names).cast(pa.string())


@cache
def _named(enum: EnumDescriptor) -> tuple[pa.Array, _Int64s]:
    """Return an enum's names, and at each of its numbers the place of its name; -1 at others."""
    known = {number: value.name for number, value in enum.values_by_number.items() if 0 <= number < _ENUM_NUMBERS_MAX}
    places = np.full(max(known, default=-1) + 1, -1, dtype=np.int64)
    for place, number in enumerate(known):
        places[number] = place
    return pa.array(list(known.values()), pa.string()), places


def _uncommon_names(enum: EnumDescriptor, numbers: _Int64s, mask: npt.NDArray[np.bool_] | None) -> pa.Array:
    distinct, places = np.unique(numbers, return_inverse=True)
    known = {number: value.name for number, value in enum.values_by_number.items()}
    names = [known.get(int(number), str(int(number))) for number in distinct]
    indices = pa.array(places, pa.int32(), mask=mask)
    return pa.DictionaryArray.from_arrays(indices, pa.array(names, pa.string())).cast(pa.string())


def _map(field: FieldDescriptor, raw: pa.Array) -> pa.Array:
    key, value = map_fields(field)
    if value.message_type is not None and raw.items.null_count:
        raise Doubt("an entry of a map has no value")
    keys, values, offsets = _items(key, raw.keys), _items(value, raw.items), raw.offsets
    order = _order(raw, keys)
    if order is not None:
        keys, values = keys.take(order), values.take(order)
    return pa.MapArray.from_arrays(offsets, keys, values, type=field_type(field), mask=_absent(raw))


def _order(raw: pa.Array, keys: pa.Array) -> pa.Array | None:
    """Return in which order the entries of each map stand by key; None where they do already.

    Raises:
        Doubt: a key comes twice in a map.
    """
    if not len(keys):
        return None
    ranks, distinct = _ranks(keys)
    lengths = np.diff(raw.offsets.to_numpy(zero_copy_only=False))
    places = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths) * distinct + ranks
    if (places[1:] > places[:-1]).all():
        return None
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    if not (ordered[1:] > ordered[:-1]).all():
        raise Doubt("a key comes twice in a map")
    return pa.array(order)


def _ranks(keys: pa.Array) -> tuple[_Int64s, int]:
    """Return each key's rank among the distinct ones, and how many those are."""
    encoded = keys.dictionary_encode()
    ascending = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(ascending), dtype=np.int64)
    rank[ascending] = np.arange(len(ascending))
    return rank[encoded.indices.to_numpy()], len(ascending)


def _check_oneofs(descriptor: Descriptor, column: Callable[[str], pa.Array]) -> None:
    """Raise Doubt where more than one member of a oneof is set: protobuf keeps the last, which columns do not tell."""
    for oneof in descriptor.oneofs:
        members = [column(field.name) for field in oneof.fields]
        if len(members) < 2:
            continue
        present = sum(member.is_valid().to_numpy(zero_copy_only=False).astype(np.int8) for member in members)
        if (present > 1).any():
            raise Doubt(f"{oneof.full_name} is set more than once")
