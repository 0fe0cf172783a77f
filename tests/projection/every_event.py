"""A log that holds events of every type, filled at random, with attempts, copies and records not to be believed."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from esper.leyline import EVENT_TYPES, Record
from tests.projection.log import TOPICS, Log

KEYS = ("run-a", "run-b", "run-c")
_DEPTH_MAX = 3


def every_event(chooser: random.Random, *, each: int) -> Log:
    """Return a log of `each` random events of every type that a topic carries, in random order."""
    log = Log()
    names = [name for spec in TOPICS for name in spec.types if name in EVENT_TYPES] * each
    chooser.shuffle(names)
    for name in names:
        message: Any = EVENT_TYPES[name]()
        fill(message, chooser)
        record = log.append(message, key=chooser.choice(KEYS))
        _follow(log, record, message, chooser)
    return log


def _follow(log: Log, record: Record, message: Any, chooser: random.Random) -> None:
    """Let now and then something follow that is no news: the same again, another attempt, a forgery, garbage."""
    fate = chooser.random()
    if fate < 0.1:
        log.append_raw(record)
    elif fate < 0.15 and "attempt" in message.DESCRIPTOR.fields_by_name:
        message.attempt += 1
        log.append(message, key=(record.key or b"").decode(), event_id=message.meta.event_id)
    elif fate < 0.2:
        log.append_raw(replace(record, headers=record.headers[1:]))
    elif fate < 0.25:
        log.append_raw(replace(record, value=bytes(chooser.randrange(256) for _ in range(20))))


def fill(message: Message, chooser: random.Random, depth: int = 0) -> None:
    """Set most fields of a message to random values; `meta` is the log's to fill."""
    for field in message.DESCRIPTOR.fields:
        if field.name == "meta" or chooser.random() < 0.15:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _fill_map(message, field, chooser, depth)
        elif field.is_repeated:
            _fill_list(message, field, chooser, depth)
        elif field.message_type is not None:
            _fill_message(getattr(message, field.name), chooser, depth)
        else:
            setattr(message, field.name, _scalar(field, chooser))


def _fill_map(message: Message, field: FieldDescriptor, chooser: random.Random, depth: int) -> None:
    entry: Any = field.message_type
    key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
    for _ in range(chooser.randrange(3)):
        if value.message_type is not None:
            _fill_message(getattr(message, field.name)[_scalar(key, chooser)], chooser, depth)
        else:
            getattr(message, field.name)[_scalar(key, chooser)] = _scalar(value, chooser)


def _fill_list(message: Message, field: FieldDescriptor, chooser: random.Random, depth: int) -> None:
    items = getattr(message, field.name)
    for _ in range(chooser.randrange(3)):
        if field.message_type is not None:
            _fill_message(items.add(), chooser, depth)
        else:
            items.append(_scalar(field, chooser))


def _fill_message(message: Message, chooser: random.Random, depth: int) -> None:
    if isinstance(message, Timestamp):
        message.FromNanoseconds(chooser.randrange(10**9, 2 * 10**18))
    elif isinstance(message, Struct):
        message.update({"a": chooser.randrange(10)})
    elif not isinstance(message, Value | ListValue) and depth < _DEPTH_MAX:
        message.SetInParent()
        fill(message, chooser, depth + 1)


def _scalar(field: FieldDescriptor, chooser: random.Random) -> Any:
    kind = field.cpp_type
    if field.enum_type is not None:
        return chooser.choice(list(field.enum_type.values_by_number))
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return chooser.random() < 0.5
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return chooser.choice((0.0, -0.0, 1.5, -2.25, 1e30, float("inf"), float("nan")))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return bytes(chooser.randrange(256) for _ in range(chooser.randrange(6)))
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return "".join(chooser.choice("ab-é√ 0") for _ in range(chooser.randrange(8)))
    return chooser.randrange(1, 50)
