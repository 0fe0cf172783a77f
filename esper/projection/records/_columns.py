"""One canonical Arrow schema for every message, derived from its descriptor, and the columns that fill it.

| protobuf | Arrow | DuckDB | why |
|---|---|---|---|
| bool, int32, int64, uint32, uint64, float, double, string, bytes | the same | the same | |
| enum | string | VARCHAR | its name as the contract spells it: SQL should not know numbers; a number without a name is kept as digits |
| google.protobuf.Timestamp | timestamp[us, UTC] | TIMESTAMP WITH TIME ZONE | microseconds hold the whole range of the message, years 1 to 9999; nanoseconds end in 2262 and overflow in silence; finer digits are cut off, the log still has them |
| google.protobuf.Struct, Value, ListValue | string | VARCHAR | they nest without bound, which no column type can: JSON with sorted keys |
| message | struct | STRUCT | null when absent |
| repeated | list | LIST | empty, never null |
| map | map | MAP | ordered by key: protobuf gives no order |
| optional and oneof members | as above | | null when absent; which member of a oneof is set shows by which is not null |

Fields stand in the order of their numbers. Unknown fields are dropped. A decoder of any kind must give exactly these columns.
"""  # noqa: E501 - a table's row is one line

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import pyarrow as pa
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.internal.wire_format import WIRETYPE_LENGTH_DELIMITED
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.unknown_fields import UnknownFieldSet

TIMESTAMP: Final = pa.timestamp("us", tz="UTC")

_SCALARS: Final[dict[int, pa.DataType]] = {
    FieldDescriptor.CPPTYPE_BOOL: pa.bool_(),
    FieldDescriptor.CPPTYPE_INT32: pa.int32(),
    FieldDescriptor.CPPTYPE_INT64: pa.int64(),
    FieldDescriptor.CPPTYPE_UINT32: pa.uint32(),
    FieldDescriptor.CPPTYPE_UINT64: pa.uint64(),
    FieldDescriptor.CPPTYPE_FLOAT: pa.float32(),
    FieldDescriptor.CPPTYPE_DOUBLE: pa.float64(),
    FieldDescriptor.CPPTYPE_ENUM: pa.string(),
    FieldDescriptor.CPPTYPE_STRING: pa.string(),
}
_JSON_MESSAGES: Final = frozenset(cls.DESCRIPTOR.full_name for cls in (Struct, Value, ListValue))
_TIMESTAMP_NAME: Final = Timestamp.DESCRIPTOR.full_name
#: 0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z, the range that timestamp.proto states.
SECONDS_MIN: Final = -62_135_596_800
SECONDS_MAX: Final = 253_402_300_799
NANOS_PER_SECOND: Final = 1_000_000_000


@cache
def arrow_schema(descriptor: Descriptor) -> pa.Schema:
    """Return the canonical columns of a message.

    Raises:
        TypeError: the message contains itself, which no column type can hold.
    """
    return pa.schema(
        [pa.field(field.name, field_type(field, (descriptor.full_name,))) for field in fields_of(descriptor)]
    )


def columns(descriptor: Descriptor, messages: Sequence[Message]) -> pa.RecordBatch:
    """Return `messages`, all of one type, as the canonical columns; one row each, in their order.

    Raises:
        ValueError: a timestamp lies outside the range that protobuf allows.
    """
    arrays = [_column(field, messages) for field in fields_of(descriptor)]
    return pa.RecordBatch.from_arrays(arrays, schema=arrow_schema(descriptor))


@cache
def fields_of(descriptor: Descriptor) -> list[FieldDescriptor]:
    """Return a message's fields in the order of their numbers."""
    return sorted(descriptor.fields, key=lambda field: field.number)


def is_map(field: FieldDescriptor) -> bool:
    """Return whether a field is a map."""
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def map_fields(field: FieldDescriptor) -> tuple[FieldDescriptor, FieldDescriptor]:
    """Return the fields of a map's keys and values."""
    entry = field.message_type
    assert entry is not None, "a map field has an entry type"
    return entry.fields_by_name["key"], entry.fields_by_name["value"]


def is_timestamp(descriptor: Descriptor) -> bool:
    """Return whether a message becomes a timestamp."""
    return bool(descriptor.full_name == _TIMESTAMP_NAME)


def is_json(descriptor: Descriptor) -> bool:
    """Return whether a message becomes JSON."""
    return descriptor.full_name in _JSON_MESSAGES


def field_type(field: FieldDescriptor, path: tuple[str, ...] = ()) -> pa.DataType:
    """Return the type of a field's column; `path` names the messages around it."""
    if is_map(field):
        key, value = map_fields(field)
        return pa.map_(item_type(key, path), item_type(value, path))
    item = item_type(field, path)
    return pa.list_(item) if field.is_repeated else item


def item_type(field: FieldDescriptor, path: tuple[str, ...] = ()) -> pa.DataType:
    """Return the type of one value of `field`; `path` names the messages around it."""
    if field.message_type is None:
        return pa.binary() if field.type == FieldDescriptor.TYPE_BYTES else _SCALARS[field.cpp_type]
    return _message_type(field.message_type, path)


def _message_type(descriptor: Descriptor, path: tuple[str, ...]) -> pa.DataType:
    name = descriptor.full_name
    if name == _TIMESTAMP_NAME:
        return TIMESTAMP
    if name in _JSON_MESSAGES:
        return pa.string()
    if name in path:
        raise TypeError(f"{name} contains itself; no column type can hold that")
    return pa.struct([pa.field(field.name, field_type(field, (*path, name))) for field in fields_of(descriptor)])


def _column(field: FieldDescriptor, owners: Sequence[Message | None]) -> pa.Array:
    """Return what `field` holds in each owner; null where the owner itself is absent."""
    if is_map(field):
        return _map_column(field, owners)
    if field.is_repeated:
        return _list_column(field, owners)
    return _items(field, _values(field, owners))


def _values(field: FieldDescriptor, owners: Sequence[Message | None]) -> list[object]:
    name = field.name
    if field.has_presence:
        return [None if owner is None or not owner.HasField(name) else getattr(owner, name) for owner in owners]
    return [None if owner is None else getattr(owner, name) for owner in owners]


def _list_column(field: FieldDescriptor, owners: Sequence[Message | None]) -> pa.Array:
    lists: list[Sequence[object]] = [() if owner is None else getattr(owner, field.name) for owner in owners]
    values = _items(field, [value for items in lists for value in items])
    return pa.ListArray.from_arrays(_offsets(lists), values, type=field_type(field), mask=_absent(owners))


def _map_column(field: FieldDescriptor, owners: Sequence[Message | None]) -> pa.Array:
    key, value = map_fields(field)
    maps: list[list[tuple[Any, Any]]] = [
        [] if owner is None else sorted(_entries(field, owner).items(), key=lambda pair: pair[0]) for owner in owners
    ]
    keys = _items(key, [pair[0] for pairs in maps for pair in pairs])
    values = _items(value, [pair[1] for pairs in maps for pair in pairs])
    return pa.MapArray.from_arrays(_offsets(maps), keys, values, type=field_type(field), mask=_absent(owners))


def _entries(field: FieldDescriptor, owner: Message) -> dict[Any, Any]:
    """Return a map's entries, with those that hold a field besides key and value.

    Python's parser keeps such an entry as an unknown field of its owner, where every other one takes it.
    """
    entries = dict(getattr(owner, field.name).items())
    strangers: Any = UnknownFieldSet(owner)
    for stranger in strangers:
        if stranger.field_number == field.number and stranger.wire_type == WIRETYPE_LENGTH_DELIMITED:
            assert field.message_type is not None, "a map field has an entry type"
            entry: Any = GetMessageClass(field.message_type).FromString(stranger.data)
            entries.setdefault(entry.key, entry.value)
    return entries


def _offsets(lists: Sequence[Sequence[object]]) -> pa.Array:
    offsets = [0]
    for items in lists:
        offsets.append(offsets[-1] + len(items))
    return pa.array(offsets, type=pa.int32())


def _absent(values: Sequence[object]) -> pa.Array:
    """Return a mask that is true where there is nothing."""
    return pa.array([value is None for value in values], type=pa.bool_())


def _items(field: FieldDescriptor, values: Sequence[Any]) -> pa.Array:
    """Return single values of `field` as an array; None becomes null."""
    if field.message_type is not None:
        return _messages(field.message_type, values)
    if field.enum_type is not None:
        values = [None if value is None else _enum_name(field.enum_type, value) for value in values]
    return pa.array(values, type=item_type(field))


def _messages(descriptor: Descriptor, values: Sequence[Any]) -> pa.Array:
    if descriptor.full_name == _TIMESTAMP_NAME:
        return pa.array([None if value is None else microseconds(value) for value in values], type=TIMESTAMP)
    if descriptor.full_name in _JSON_MESSAGES:
        return pa.array([None if value is None else _json_text(value) for value in values], type=pa.string())
    children = [_column(field, values) for field in fields_of(descriptor)]
    kind = _message_type(descriptor, ())
    return pa.StructArray.from_arrays(children, fields=list(kind), mask=_absent(values))


def _enum_name(enum: EnumDescriptor, number: int) -> str:
    value = enum.values_by_number.get(number)
    return str(number) if value is None else str(value.name)


def microseconds(moment: Timestamp) -> int:
    """Return microseconds since the Unix epoch; what is finer is cut off towards the past.

    Raises:
        ValueError: outside the range that timestamp.proto states.
    """
    if not (SECONDS_MIN <= moment.seconds <= SECONDS_MAX and 0 <= moment.nanos < NANOS_PER_SECOND):
        raise ValueError(f"timestamp of {moment.seconds} s and {moment.nanos} ns is out of range")
    return moment.seconds * 1_000_000 + moment.nanos // 1_000


def _json_text(message: Message) -> str:
    return json.dumps(_plain(message), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _plain(message: Any) -> object:  # noqa: ANN401 - a message type of google.protobuf.struct
    """Return a Struct, ListValue or Value as plain Python; numbers that JSON lacks become their names."""
    if isinstance(message, Struct):
        return {key: _plain(value) for key, value in message.fields.items()}
    if isinstance(message, ListValue):
        return [_plain(value) for value in message.values]
    kind = message.WhichOneof("kind")
    if kind in (None, "null_value"):
        return None
    content = getattr(message, kind)
    if kind == "number_value" and not math.isfinite(content):
        return "NaN" if math.isnan(content) else "Infinity" if content > 0 else "-Infinity"
    return _plain(content) if kind in ("struct_value", "list_value") else content
