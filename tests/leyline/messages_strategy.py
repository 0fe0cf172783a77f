"""Hypothesis strategies that fill any message of the contract, field by field, from its descriptor."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_MAX_ITEMS = 3
_DEPTH_MAX = 3
_WELL_KNOWN = "google.protobuf."

_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False),
    FieldDescriptor.TYPE_FLOAT: st.floats(width=32, allow_nan=False),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_STRING: st.text(max_size=12),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=12),
}


#: What newer code wrote is not decoded, and every type of the contract has had one version; 0 is an old word for 1.
_VERSION = "esper.leyline.v1.EventMeta.schema_version"


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.full_name == _VERSION:
        return st.integers(0, 1)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return st.sampled_from([value.number for value in field.enum_type.values])
    return _SCALARS[field.type]


def _fill(draw: st.DrawFn, message: Message, descriptor: Descriptor, depth: int) -> None:
    for field in descriptor.fields:
        if field.containing_oneof is not None and draw(st.booleans()):
            continue
        _fill_field(draw, message, field, depth)


def _fill_field(draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
    target = getattr(message, field.name)
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        for map_key in draw(st.lists(_scalar(key), max_size=_MAX_ITEMS, unique=True)):
            if value.message_type is None:
                target[map_key] = draw(_scalar(value))
            else:
                _fill(draw, target[map_key], value.message_type, depth + 1)
    elif field.is_repeated:
        for _ in range(draw(st.integers(0, 0 if depth >= _DEPTH_MAX else _MAX_ITEMS))):
            if entry is None:
                target.append(draw(_scalar(field)))
            else:
                _fill(draw, target.add(), entry, depth + 1)
    elif entry is None:
        setattr(message, field.name, draw(_scalar(field)))
    elif entry.full_name == f"{_WELL_KNOWN}Timestamp":
        target.seconds, target.nanos = draw(st.integers(0, 2**33)), draw(st.integers(0, 999_999_999))
    elif entry.full_name == f"{_WELL_KNOWN}Struct":
        target.update(dict.fromkeys(draw(st.lists(st.text(max_size=5), max_size=2, unique=True)), 1.5))
    elif depth < _DEPTH_MAX:
        target.SetInParent()
        _fill(draw, target, entry, depth + 1)


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor) -> Message:
    """Draw a message of `descriptor` with every field set to something."""
    message = GetMessageClass(descriptor)()
    _fill(draw, message, descriptor, 0)
    return message
