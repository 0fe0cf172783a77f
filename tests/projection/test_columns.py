"""Tests of the canonical Arrow columns and of the decoder that fills them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.leyline import EVENT_TYPES
from esper.leyline import messages as ly
from esper.projection.records._columns import arrow_schema, columns, microseconds
from esper.projection.records._decoder import ProtobufDecoder
from tests.leyline.messages_strategy import messages

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAMES = sorted(EVENT_TYPES)


def _fill(message: Message, row: dict[str, Any]) -> None:
    """Set a message's fields from a row: written against the table in `_columns`, not with its code."""
    for field in message.DESCRIPTOR.fields:
        value = row[field.name]
        entry = field.message_type
        if value is None:
            continue
        if entry is not None and entry.GetOptions().map_entry:
            _fill_map(getattr(message, field.name), entry.fields_by_name["value"], value)
        elif field.is_repeated:
            for item in value:
                if entry is None:
                    getattr(message, field.name).append(_scalar(field, item))
                else:
                    _fill_message(getattr(message, field.name).add(), item)
        elif entry is None:
            setattr(message, field.name, _scalar(field, value))
        else:
            getattr(message, field.name).SetInParent()
            _fill_message(getattr(message, field.name), value)


def _fill_map(target: Any, value_field: FieldDescriptor, pairs: list[tuple[Any, Any]]) -> None:
    assert [key for key, _ in pairs] == sorted(key for key, _ in pairs)
    for key, value in pairs:
        if value_field.message_type is None:
            target[key] = _scalar(value_field, value)
        else:
            _fill_message(target[key], value)


def _fill_message(target: Any, value: Any) -> None:
    if isinstance(target, Timestamp):
        passed = value - _EPOCH
        target.seconds = passed // timedelta(seconds=1)
        target.nanos = (passed % timedelta(seconds=1)) // timedelta(microseconds=1) * 1000
    elif isinstance(target, Struct):
        target.update(json.loads(value))
    else:
        _fill(target, value)


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    if field.enum_type is None:
        return value
    known = field.enum_type.values_by_name.get(value)
    return int(value) if known is None else known.number


def _cut(message: Message) -> None:
    """Cut every timestamp in a message to microseconds, the one thing that the columns lose."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            parts = list(value.values()) if field.message_type.fields_by_name["value"].message_type else []
        else:
            parts = list(value) if field.is_repeated else [value]
        for part in parts:
            if isinstance(part, Timestamp):
                part.nanos -= part.nanos % 1000
            else:
                _cut(part)


@pytest.mark.parametrize("name", _NAMES)
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_every_event_comes_back_from_its_columns(name: str, data: st.DataObject) -> None:
    """Decode is a round trip: fill any event, make columns of its bytes, rebuild the event from the row alone."""
    cls = EVENT_TYPES[name]
    drawn = data.draw(st.lists(messages(cls.DESCRIPTOR), min_size=1, max_size=3))

    decoded = ProtobufDecoder().decode(name, [message.SerializeToString() for message in drawn])

    assert list(decoded.good) == list(range(len(drawn)))
    assert not decoded.bad
    assert decoded.rows.schema.equals(arrow_schema(cls.DESCRIPTOR))
    decoded.rows.validate(full=True)
    for message, row in zip(drawn, decoded.rows.to_pylist(), strict=True):
        rebuilt = cls()
        _fill(rebuilt, row)
        _cut(message)
        assert rebuilt == message


@pytest.mark.parametrize("name", _NAMES)
def test_duckdb_gives_the_columns_back(name: str) -> None:
    """DuckDB holds what the canonical columns hold: store an empty and a filled event, read them, compare."""
    cls = EVENT_TYPES[name]
    filled = cls()
    for field in cls.DESCRIPTOR.fields:
        if field.message_type is not None and not field.is_repeated:
            getattr(filled, field.name).SetInParent()
    batch = columns(cls.DESCRIPTOR, [cls(), filled])
    connection = duckdb.connect(":memory:")
    connection.execute("set TimeZone = 'UTC'")
    connection.register("batch", pa.Table.from_batches([batch]))

    connection.execute("create table stored as from batch")

    assert connection.sql("from stored").to_arrow_table().to_pylist() == batch.to_pylist()
    connection.close()


def test_absent_differs_from_default() -> None:
    """Presence survives: an optional number, a oneof member and a sub-message are null only when absent."""
    absent = ly.FieldReport()
    zero = ly.FieldReport(counterfactual_gain=0.0)
    rows = columns(ly.FieldReport.DESCRIPTOR, [absent, zero]).to_pylist()
    assert [row["counterfactual_gain"] for row in rows] == [None, 0.0]

    plain, seeded = ly.AdaptationCommand(), ly.AdaptationCommand()
    seeded.seed_operation.SetInParent()
    rows = columns(ly.AdaptationCommand.DESCRIPTOR, [plain, seeded]).to_pylist()
    assert rows[0]["seed_operation"] is None
    assert rows[1]["seed_operation"]["operation"] == "SEED_OP_UNKNOWN"
    assert rows[1]["circuit_breaker"] is None


def test_an_enum_number_without_a_name_is_kept() -> None:
    """A number that a later contract gives a name is not lost: it stands there as digits."""
    value = ly.TelemetryPacket(level=2).SerializeToString().replace(b"\x28\x02", b"\x28\x63")
    assert ly.TelemetryPacket.FromString(value).level == 99

    decoded = ProtobufDecoder().decode("esper.leyline.v1.TelemetryPacket", [value])

    assert decoded.rows.column("level").to_pylist() == ["99"]


def test_a_struct_becomes_json_with_sorted_keys() -> None:
    """Unbounded nesting becomes text: every kind of Value, and numbers that JSON lacks."""
    command = ly.AdaptationCommand()
    fields = command.rollback_payload.fields
    fields["z"].number_value = float("nan")
    fields["y"].number_value = float("-inf")
    fields["b"].list_value.CopyFrom(ListValue(values=[Value(bool_value=True), Value(null_value=0)]))  # type: ignore[arg-type]
    fields["a"].struct_value.fields["inner"].string_value = "ü"
    fields["u"].CopyFrom(Value())

    text = columns(ly.AdaptationCommand.DESCRIPTOR, [command]).column("rollback_payload")[0].as_py()

    assert text == '{"a":{"inner":"ü"},"b":[true,null],"u":null,"y":"-Infinity","z":"NaN"}'


def test_bad_values_cost_nobody_else_a_row() -> None:
    """A value that does not parse and one with an impossible time are named; the good ones keep their order."""
    late = ly.FieldReport(report_id="late")
    late.issued_at.seconds = 2**62
    values = [
        ly.FieldReport(report_id="a").SerializeToString(),
        b"\xff\xff",
        late.SerializeToString(),
        ly.FieldReport(report_id="b").SerializeToString(),
    ]

    decoded = ProtobufDecoder().decode("esper.leyline.v1.FieldReport", values)

    assert list(decoded.good) == [0, 3]
    assert decoded.rows.column("report_id").to_pylist() == ["a", "b"]
    assert decoded.bad.keys() == {1, 2}
    assert "out of range" in decoded.bad[2].detail


@pytest.mark.parametrize(
    ("seconds", "nanos", "expected"),
    [
        (0, 999, 0),
        (-1, 999_999_999, -1),
        (253_402_300_799, 999_999_999, 253_402_300_799_999_999),
        (-62_135_596_800, 0, -62_135_596_800_000_000),
    ],
)
def test_times_are_cut_towards_the_past(seconds: int, nanos: int, expected: int) -> None:
    """The whole range of protobuf's Timestamp fits, and finer digits are cut, at the edges and around zero."""
    assert microseconds(Timestamp(seconds=seconds, nanos=nanos)) == expected


def test_a_message_that_contains_itself_has_no_columns() -> None:
    """Recursion is refused when the schema is made, by a descriptor that is recursive and not a Struct."""
    from google.protobuf.descriptor_pb2 import DescriptorProto

    with pytest.raises(TypeError, match="contains itself"):
        arrow_schema(DescriptorProto.DESCRIPTOR)
