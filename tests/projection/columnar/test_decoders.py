"""Tests that the fast decoder and protobuf's own give the same tables, whatever stands on the wire."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.struct_pb2 import Struct

from esper.core.rng import derive_seed
from esper.leyline import EVENT_TYPES, full_name
from esper.leyline import messages as ly
from esper.projection import canonical_row
from esper.projection.columnar import ArrowDecoder
from esper.projection.records._decoder import Decoded, ProtobufDecoder
from tests.campaigns import WHOLE, seed_of
from tests.projection.columnar.wire import length_delimited, message, tag, varint

_TYPES = sorted(EVENT_TYPES)
_BATCH = 200
_REFERENCE = ProtobufDecoder()


def _assert_equal(type_name: str, values: list[bytes], seed: object = "", *, malformed: bool = False) -> Decoded:
    """Assert that both decoders give the same rows and refuse the same values; return what the fast one gives.

    Of `malformed` values protobuf may refuse more: it alone looks into fields that the contract does not know.
    """
    fast, slow = ArrowDecoder().decode(type_name, values), _REFERENCE.decode(type_name, values)
    assert sorted([*fast.good, *fast.bad]) == sorted([*slow.good, *slow.bad]) == list(range(len(values)))
    refused, expected = ({index: str(why) for index, why in one.bad.items()} for one in (fast, slow))
    assert refused.items() <= expected.items(), (type_name, seed)
    assert malformed or refused == expected, (type_name, seed)
    assert fast.rows.schema == slow.rows.schema
    ours = dict(zip(fast.good, fast.rows.to_pylist(), strict=True))
    theirs = dict(zip(slow.good, slow.rows.to_pylist(), strict=True))
    for index, row in theirs.items():
        assert canonical_row(ours[index]) == canonical_row(row), (type_name, seed, values[index])
    return fast


@pytest.mark.campaign
def test_both_decoders_give_equal_tables(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    """Random messages of every type, extreme values, strangers and pieces included: compare all rows."""
    seed = seed_of(request)
    rng, left = random.Random(derive_seed(seed, "decoders")), 100_000 if WHOLE else 8_000  # noqa: S311 - seeded
    decoded = refused = 0
    while left > 0:
        for type_name in _TYPES:
            descriptor: Descriptor = EVENT_TYPES[type_name].DESCRIPTOR  # type: ignore[assignment]
            found = _assert_equal(type_name, [message(rng, descriptor) for _ in range(_BATCH)], seed)
            decoded, refused, left = decoded + len(found.good), refused + len(found.bad), left - _BATCH
    record_property("seed", seed)
    record_property("messages", decoded + refused)
    record_property("refused by both", refused)
    assert decoded > refused > 0, "texts that are no UTF-8 are refused, others are not"


def test_what_is_no_message_is_refused_alike(request: pytest.FixtureRequest) -> None:
    """Flip a bit or cut the end of messages: what both decoders take is equal, and what protobuf takes both take."""
    seed = seed_of(request)
    rng, refused = random.Random(derive_seed(seed, "spoilt")), 0  # noqa: S311 - seeded
    for type_name in _TYPES:
        descriptor: Descriptor = EVENT_TYPES[type_name].DESCRIPTOR  # type: ignore[assignment]
        values = [_spoilt(rng, message(rng, descriptor)) for _ in range(60)]
        refused += len(_assert_equal(type_name, values, seed, malformed=True).bad)
    assert refused > 0


def _spoilt(rng: random.Random, value: bytes) -> bytes:
    """Return a value with a flipped bit or without its end."""
    if not value or rng.random() < 0.3:
        return value[: len(value) // 2]
    at = rng.randrange(len(value))
    return value[:at] + bytes([value[at] ^ 1 << rng.randrange(8)]) + value[at + 1 :]


def _report(**fields: object) -> bytes:
    return ly.FieldReport(report_id="r", **fields).SerializeToString()  # type: ignore[arg-type]


def _doubtful() -> dict[str, tuple[str, bytes]]:
    """Return values that the fast columns cannot tell apart from others, by what is special of them."""
    struct = Struct()
    struct.update({"epoch": 3})
    entry = length_delimited(1, b"loss") + tag(2, 1) + bytes(8)
    return {
        "a map's key twice": ("FieldReport", length_delimited(15, entry) * 2),
        "a oneof set twice": ("AdaptationCommand", length_delimited(10, b"") + length_delimited(12, b"")),
        "a oneof set back": (
            "AdaptationCommand",
            length_delimited(10, b"") + length_delimited(12, b"") + length_delimited(10, b""),
        ),
        "a struct": ("AdaptationCommand", ly.AdaptationCommand(rollback_payload=struct).SerializeToString()),
        "an empty struct": ("AdaptationCommand", length_delimited(13, b"")),
        "a time too late": ("FieldReport", length_delimited(19, tag(1, 0) + varint(2**60))),
        "nanoseconds below zero": ("FieldReport", length_delimited(19, tag(2, 0) + varint(-1))),
        "a message in two pieces": (
            "FieldReport",
            length_delimited(1, b"\x12\x01a") + length_delimited(1, b"\x1a\x01b"),
        ),
        "an unknown enum number": ("FieldReport", tag(11, 0) + varint(77)),
        "an enum number below zero": ("FieldReport", tag(11, 0) + varint(-3)),
        "an empty value": ("FieldReport", b""),
        "empty bytes": ("DeadLetter", length_delimited(5, b"")),
    }


@pytest.mark.parametrize("kind", sorted(_doubtful()))
def test_one_doubt_costs_no_other_row(kind: str) -> None:
    """What the columns cannot tell is left to protobuf alone: put one such value between a thousand plain ones."""
    short, value = _doubtful()[kind]
    plain = {
        "FieldReport": _report(metrics={"b": 1.0, "a": 2.0}, epoch=3),
        "AdaptationCommand": ly.AdaptationCommand(command_id="c", epoch=1).SerializeToString(),
        "DeadLetter": ly.DeadLetter(topic="runs", key=b"k").SerializeToString(),
    }[short]
    values = [plain] * 1_000
    values[700] = value
    found = _assert_equal(full_name(short), values, kind)
    assert len(found.good) >= 999


def test_nothing_gives_no_rows() -> None:
    """An empty batch has the same columns and no rows."""
    for type_name in _TYPES:
        assert len(_assert_equal(type_name, []).good) == 0
