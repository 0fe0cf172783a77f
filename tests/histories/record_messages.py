"""Write golden bytes of every event type for a new release: python -m tests.histories.record_messages VERSION."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from esper.leyline import EVENT_TYPES

_TEXT, _WHOLE, _REAL = "text", 7, 0.5


def _value(field: FieldDescriptor) -> object:
    if field.type == FieldDescriptor.TYPE_STRING:
        return f"{field.name}-{_TEXT}"
    if field.type == FieldDescriptor.TYPE_BYTES:
        return field.name.encode()
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return _REAL
    if field.type == FieldDescriptor.TYPE_BOOL:
        return True
    if field.type == FieldDescriptor.TYPE_ENUM:
        return field.enum_type.values[-1].number
    return _WHOLE + field.number


def fill(message: Message, descriptor: Descriptor, depth: int = 0) -> None:
    """Set every field of `message` to a fixed value, two levels deep."""
    for field in descriptor.fields:
        target, entry = getattr(message, field.name), field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            if entry.fields_by_name["value"].message_type is None:
                target["name"] = _value(entry.fields_by_name["value"])
            else:
                fill(target["name"], entry.fields_by_name["value"].message_type, depth + 1)
        elif field.is_repeated:
            if entry is None:
                target.append(_value(field))
            elif depth < 2:
                fill(target.add(), entry, depth + 1)
        elif entry is None:
            setattr(message, field.name, _value(field))
        elif entry.full_name == "google.protobuf.Timestamp":
            target.FromNanoseconds(1_700_000_000_123_456_789)
        elif entry.full_name != "google.protobuf.Struct" and depth < 2:
            fill(target, entry, depth + 1)


def golden() -> dict[str, dict[str, object]]:
    """Return bytes (hexadecimal) and JSON of one filled message of every event type."""
    result: dict[str, dict[str, object]] = {}
    for name, cls in sorted(EVENT_TYPES.items()):
        message = cls()
        fill(message, cls.DESCRIPTOR)
        result[name] = {
            "bytes": message.SerializeToString(deterministic=True).hex(),
            "json": json_format.MessageToDict(message, preserving_proto_field_name=True),
        }
    return result


if __name__ == "__main__":
    folder = Path(__file__).parent / sys.argv[1]
    folder.mkdir(exist_ok=True)
    (folder / "messages.json").write_text(json.dumps(golden(), indent=1, sort_keys=True) + "\n")
