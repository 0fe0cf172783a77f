"""From the bytes of records to Arrow, behind an interface that a faster decoder can take over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, cast

import pyarrow as pa
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from esper.leyline import EVENT_TYPES, AnyEvent, BadRecord, decode_value, full_name
from esper.leyline import messages as ly
from esper.projection.records._columns import columns


@dataclass(frozen=True)
class Decoded:
    """What became of a batch of values.

    `rows` holds the canonical columns (see `_columns`), one row for each index in `good`, in that order;
    `bad` says of the other indices why they have no row.
    """

    rows: pa.RecordBatch
    good: Sequence[int]
    bad: Mapping[int, BadRecord]


#: Reads the meta of an event of any type, of any version.
ANY_EVENT: Final = full_name("AnyEvent")


def message_class(type_name: str) -> type[Message]:
    """Return the class of an event type, or of what reads the meta of any."""
    return AnyEvent if type_name == ANY_EVENT else EVENT_TYPES[type_name]


class Decoder(Protocol):
    """Turns the values of records of one type into rows."""

    def decode(self, type_name: str, values: Sequence[bytes]) -> Decoded:
        """Decode `values`, all of the event type with this full name, and bring them to its current version.

        One bad value costs nobody else a row. Two decoders give equal rows and the same bad indices.
        """


class ProtobufDecoder:
    """The reference: protobuf's own parser, then column by column."""

    def decode(self, type_name: str, values: Sequence[bytes]) -> Decoded:
        """Decode `values`, all of the event type with this full name, and bring them to its current version."""
        cls = message_class(type_name)
        parsed: dict[int, Message] = {}
        bad: dict[int, BadRecord] = {}
        for index, value in enumerate(values):
            try:
                parsed[index] = _meta_alone(value) if cls is AnyEvent else decode_value(type_name, value)
            except BadRecord as why:
                bad[index] = why
        try:
            return Decoded(_rows(cls, parsed.values()), list(parsed), bad)
        except ValueError:
            return _one_by_one(cls, parsed, bad)


def _meta_alone(value: bytes) -> Message:
    try:
        return AnyEvent.FromString(value)
    except DecodeError as error:
        raise BadRecord(ly.DEAD_LETTER_REASON_UNDECODABLE, "the value is not a protobuf event") from error


def _rows(cls: type[Message], messages: Iterable[Message]) -> pa.RecordBatch:
    return columns(cast("Descriptor", cls.DESCRIPTOR), list(messages))


def _one_by_one(cls: type[Message], parsed: Mapping[int, Message], bad: Mapping[int, BadRecord]) -> Decoded:
    """Find the messages that have no columns, and decode the others without them."""
    found = dict(bad)
    for index, message in parsed.items():
        try:
            _rows(cls, [message])
        except ValueError as error:
            found[index] = BadRecord(ly.DEAD_LETTER_REASON_UNDECODABLE, str(error))
    good = {index: message for index, message in parsed.items() if index not in found}
    return Decoded(_rows(cls, good.values()), list(good), found)
