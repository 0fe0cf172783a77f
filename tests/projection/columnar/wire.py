"""Random bytes of messages, as any writer might put them on the wire: in any order, twice, in pieces, with strangers.

Written against the encoding (https://protobuf.dev/programming-guides/encoding), with no code of protobuf's, so that
values come up which its own serialiser never writes.
"""

from __future__ import annotations

import random
import struct
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

_VARINT, _I64, _LEN, _SGROUP, _EGROUP, _I32 = 0, 1, 2, 3, 4, 5
_SIGNED: Final = {FieldDescriptor.TYPE_SINT32, FieldDescriptor.TYPE_SINT64}
_FIXED: Final = {
    FieldDescriptor.TYPE_DOUBLE: "<d",
    FieldDescriptor.TYPE_FLOAT: "<f",
    FieldDescriptor.TYPE_FIXED64: "<Q",
    FieldDescriptor.TYPE_SFIXED64: "<q",
    FieldDescriptor.TYPE_FIXED32: "<I",
    FieldDescriptor.TYPE_SFIXED32: "<i",
}
_EXTREME: Final = (0, 1, 2, 3, 7, 127, 128, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
_DOUBLES: Final = (0.0, -0.0, 1.5, -1e308, 5e-324, float("inf"), float("-inf"), float("nan"), 0.1)
_TEXTS: Final = ("", "a", "loss", "Ω", "\x00", "日本語", "x" * 300, "'; drop table", "a\nb", "\U0001f600")
_TIMESTAMP: Final = "google.protobuf.Timestamp"
_DEPTH_MAX: Final = 5


def varint(number: int, *, pad: int = 0) -> bytes:
    """Return a varint; `pad` bytes longer than it need be."""
    content = bytearray()
    number &= 2**64 - 1
    while True:
        byte, number = number & 0x7F, number >> 7
        if number or pad > 0:
            content.append(byte | 0x80)
            if not number:
                pad -= 1
        else:
            content.append(byte)
            return bytes(content)


def tag(number: int, kind: int) -> bytes:
    """Return a field's tag."""
    return varint(number << 3 | kind)


def length_delimited(number: int, content: bytes) -> bytes:
    """Return a field of bytes, text, message or packed values."""
    return tag(number, _LEN) + varint(len(content)) + content


def message(rng: random.Random, descriptor: Descriptor, depth: int = 0) -> bytes:
    """Return the bytes of a random message: about half of its fields, some more than once, in random order."""
    if descriptor.full_name == _TIMESTAMP and rng.random() < 0.9:
        return _plain_time(rng)
    pieces = []
    for field in descriptor.fields:
        if rng.random() < (0.55 if depth < _DEPTH_MAX else 0.0):
            times = rng.choice((1, 1, 2, 3)) if field.is_repeated else 2 if rng.random() < 0.03 else 1
            pieces += [_field(rng, field, depth) for _ in range(times)]
    if rng.random() < 0.05:
        pieces.append(_stranger(rng))
    if rng.random() < 0.5:
        rng.shuffle(pieces)
    if descriptor.name == "EventMeta" and rng.random() < 0.98:
        pieces.append(tag(descriptor.fields_by_name["schema_version"].number, _VARINT) + varint(1))
    return b"".join(pieces)


def _plain_time(rng: random.Random) -> bytes:
    """Return a time within the range that timestamp.proto states, its bounds included."""
    seconds = rng.choice((-62_135_596_800, -1, 0, 1, 1_700_000_000, 253_402_300_799, rng.randrange(2**31)))
    nanos = rng.choice((0, 1, 999, 1_000, 999_999_999, rng.randrange(10**9)))
    return tag(1, _VARINT) + varint(seconds) + tag(2, _VARINT) + varint(nanos)


def _field(rng: random.Random, field: FieldDescriptor, depth: int) -> bytes:
    if rng.random() < 0.01:
        return _stranger(rng, field.number)
    if field.message_type is not None:
        entry = field.message_type
        content = _entry(rng, entry, depth) if entry.GetOptions().map_entry else message(rng, entry, depth + 1)
        return length_delimited(field.number, content)
    if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        return length_delimited(field.number, _content(rng, field))
    kind, value = _scalar(rng, field)
    if field.is_repeated and rng.random() < 0.7:
        return length_delimited(field.number, b"".join(_scalar(rng, field)[1] for _ in range(rng.randrange(4))))
    return tag(field.number, kind) + value


def _entry(rng: random.Random, entry: Descriptor, depth: int) -> bytes:
    """Return a map's entry: as a rule key and value, sometimes one of them or the other way round."""
    pieces = [_field(rng, field, depth + 1) for field in entry.fields if rng.random() < 0.95]
    if rng.random() < 0.05:
        pieces.reverse()
    return b"".join(pieces)


def _content(rng: random.Random, field: FieldDescriptor) -> bytes:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.randbytes(rng.choice((0, 0, 1, 8, 32)))
    if rng.random() < 0.002:
        return b"\xff\xfe"  # no UTF-8: the whole message is refused
    return rng.choice(_TEXTS).encode()


def _scalar(rng: random.Random, field: FieldDescriptor) -> tuple[int, bytes]:
    """Return wire type and bytes of one value."""
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        value = rng.choice((*_DOUBLES, rng.uniform(-1, 1)))
        if field.type == FieldDescriptor.TYPE_DOUBLE:
            return _I64, struct.pack("<d", value)
        return _I32, struct.pack("<f", value if abs(value) < 1e38 or value in (float("inf"), float("-inf")) else 0.5)
    if field.type in _FIXED:
        size = struct.calcsize(_FIXED[field.type])
        return (_I64 if size == 8 else _I32), rng.randbytes(size)
    number = rng.choice((*_EXTREME, rng.randrange(2**64)))
    if field.enum_type is not None and rng.random() < 0.8:
        number = rng.choice(field.enum_type.values).number
    if field.type == FieldDescriptor.TYPE_BOOL:
        number = rng.choice((0, 1, 1, 2, 2**40))
    if field.type in _SIGNED:
        number = number << 1 ^ number >> 63
    return _VARINT, varint(number, pad=rng.choice((0,) * 20 + (1, 2)) if number < 2**40 else 0)


def _stranger(rng: random.Random, number: int | None = None) -> bytes:
    """Return a field that the contract does not know, or one of its numbers with another wire type."""
    number = rng.choice((500, 1_000, 536_870_910)) if number is None else number
    kind = rng.choice((_VARINT, _I64, _LEN, _I32, _SGROUP))
    if kind == _VARINT:
        return tag(number, kind) + varint(rng.randrange(2**64))
    if kind == _LEN:
        return length_delimited(number, rng.randbytes(rng.randrange(9)))
    if kind == _SGROUP:
        return tag(number, kind) + tag(1, _VARINT) + varint(5) + tag(number, _EGROUP)
    return tag(number, kind) + rng.randbytes(8 if kind == _I64 else 4)
