"""What is signed stays where it was put, and nothing else is believed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline import (
    SIGNATURE_BYTES,
    BadRecord,
    Envelope,
    KeyRing,
    Record,
    Verdict,
    decode,
    fingerprint,
    mac_of,
    open_record,
    records,
)
from esper.leyline import messages as ly

SECRET, OTHER = b"s" * 32, b"o" * 40
RING = KeyRing.from_secrets(SECRET)
ENVELOPE = Envelope("runs", 3, "run-1", "esper.leyline.v1.TrainingRunClaimed", b"value")


def claimed(**meta: object) -> ly.TrainingRunClaimed:
    fields: dict[str, object] = {
        "event_id": "e" * 32,
        "type": "esper.leyline.v1.TrainingRunClaimed",
        "source": "tolaria",
        "subject": "run-1",
        "producer_id": "tolaria:1",
        "sequence": 1,
    }
    return ly.TrainingRunClaimed(meta=ly.EventMeta(**(fields | meta)), run_id="run-1", attempt=1)  # type: ignore[arg-type]


def record_of(message: ly.TrainingRunClaimed, *, ring: KeyRing = RING, **changes: object) -> Record:
    value = message.SerializeToString()
    envelope = Envelope("runs", 3, "run-1", "esper.leyline.v1.TrainingRunClaimed", value)
    headers = (("signature", ring.sign(envelope)), ("type", envelope.type_name.encode()))
    record = Record("runs", 3, 10, b"run-1", value, headers, 0)
    return replace(record, **changes)  # type: ignore[arg-type]


def reason_of(record: Record, *, allowed: bool = True) -> str:
    with pytest.raises(BadRecord) as caught:
        decode(record, open_record(record, keyring=RING, allowed=lambda *_: allowed))
    return ly.DeadLetterReason.Name(caught.value.reason).removeprefix("DEAD_LETTER_REASON_")


def test_a_signature_verifies_where_it_was_made() -> None:
    """Goal: genuine records pass. Method: sign, verify, and verify with an older key in the ring."""
    signature = RING.sign(ENVELOPE)
    assert len(signature) == SIGNATURE_BYTES
    assert RING.verify(ENVELOPE, signature) is Verdict.GOOD
    rotated = KeyRing.from_secrets(OTHER, [SECRET])
    assert rotated.verify(ENVELOPE, signature) is Verdict.GOOD
    assert rotated.signing_key_id == fingerprint(OTHER)
    assert KeyRing.from_secrets(OTHER).verify(ENVELOPE, signature) is Verdict.UNKNOWN_KEY
    assert RING.verify(ENVELOPE, None) is Verdict.UNSIGNED
    assert RING.verify(ENVELOPE, signature[:-1]) is Verdict.BAD
    assert mac_of(signature) == signature[8:]


@pytest.mark.parametrize(
    "moved",
    [
        ENVELOPE._replace(topic="run-requests"),
        ENVELOPE._replace(partition=4),
        ENVELOPE._replace(key="run-2"),
        ENVELOPE._replace(type_name="esper.leyline.v1.TrainingRunFailed"),
        ENVELOPE._replace(value=b"valuf"),
        ENVELOPE._replace(key="run-1e", type_name="sper.leyline.v1.TrainingRunClaimed"),
    ],
)
def test_a_moved_record_no_longer_verifies(moved: Envelope) -> None:
    """Goal: the MAC binds place, key and type. Method: move a signed record, also across field borders."""
    assert RING.verify(moved, RING.sign(ENVELOPE)) is Verdict.BAD


@given(position=st.integers(0, SIGNATURE_BYTES * 8 - 1))
def test_no_flipped_bit_of_a_signature_passes(position: int) -> None:
    """Goal: signatures cannot be bent. Method: flip any single bit."""
    signature = bytearray(RING.sign(ENVELOPE))
    signature[position // 8] ^= 1 << position % 8
    assert RING.verify(ENVELOPE, bytes(signature)) is not Verdict.GOOD


def test_short_secrets_are_refused() -> None:
    """Goal: no weak key signs. Method: 31 bytes raise, also as an older key."""
    with pytest.raises(ValueError, match="32 bytes"):
        KeyRing.from_secrets(b"x" * 31)
    with pytest.raises(ValueError, match="31"):
        KeyRing.from_secrets(SECRET, [b"x" * 31])


def test_a_genuine_record_opens_and_decodes() -> None:
    """Goal: the happy path. Method: open and decode a signed record."""
    record = record_of(claimed())
    meta = open_record(record, keyring=RING, allowed=lambda *place: place == ("runs", meta_type(), "tolaria"))
    assert meta == claimed().meta
    assert decode(record, meta) == claimed()


def meta_type() -> str:
    return "esper.leyline.v1.TrainingRunClaimed"


def test_every_kind_of_bad_record_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: nothing bad passes and each is named. Method: one record of every kind."""
    good = record_of(claimed())
    assert reason_of(replace(good, value=None)) == "EMPTY"
    assert reason_of(replace(good, value=b"")) == "EMPTY"
    assert reason_of(replace(good, headers=good.headers[1:])) == "UNSIGNED"
    assert reason_of(replace(good, headers=(*good.headers, good.headers[0]))) == "UNSIGNED"
    assert reason_of(replace(good, headers=good.headers[:1])) == "INCONSISTENT"
    assert reason_of(replace(good, key=None)) == "INCONSISTENT"
    assert reason_of(replace(good, key=b"\xff")) == "INCONSISTENT"
    assert reason_of(replace(good, value=(good.value or b"")[:-1])) == "BAD_SIGNATURE"
    assert reason_of(replace(good, partition=4)) == "BAD_SIGNATURE"
    assert reason_of(record_of(claimed(), ring=KeyRing.from_secrets(OTHER))) == "UNKNOWN_KEY"
    assert reason_of(record_of(claimed(subject="run-2"))) == "INCONSISTENT"
    assert reason_of(record_of(claimed(type="esper.leyline.v1.TrainingRunFailed"))) == "INCONSISTENT"
    assert reason_of(record_of(claimed(event_id="short"))) == "INCONSISTENT"
    assert reason_of(record_of(claimed(sequence=0))) == "INCONSISTENT"
    assert reason_of(good, allowed=False) == "NOT_ALLOWED"
    monkeypatch.setattr(records, "VALUE_BYTES_MAX", 3)
    assert reason_of(good) == "TOO_LARGE"


APPENDED_MS = 1_800_000_000_000


@pytest.mark.parametrize(("ahead_ms", "believed"), [(-(10**12), True), (0, True), (300_000, True), (300_001, False)])
def test_what_was_made_after_its_append_is_not_believed(ahead_ms: int, believed: bool) -> None:
    """Goal: no event is fresh for ever. Method: times around the broker's own, and a record without append time."""
    time = Timestamp()
    time.FromMilliseconds(APPENDED_MS + ahead_ms)
    record = record_of(claimed(time=time), append_time_ms=APPENDED_MS)
    if believed:
        assert open_record(record, keyring=RING, allowed=lambda *_: True).time == time
    else:
        assert reason_of(record) == "FUTURE_TIME"
    assert open_record(replace(record, append_time_ms=0), keyring=RING, allowed=lambda *_: True).time == time


@pytest.mark.parametrize("time", [Timestamp(seconds=253_402_300_800), Timestamp(seconds=-(2**63)), Timestamp(nanos=-1)])
def test_what_is_no_time_is_not_believed(time: Timestamp) -> None:
    """Goal: whoever shows or compares a time finds one. Method: times outside the range of protobuf's own."""
    assert reason_of(record_of(claimed(time=time))) == "INCONSISTENT"


@pytest.mark.parametrize(
    ("type_name", "value", "reason"),
    [
        ("com.example.Foreign", b"\x0a\x00", "UNKNOWN_TYPE"),
        ("esper.leyline.v1.TrainingRunClaimed", b"\xff\xff\xff", "UNDECODABLE"),
    ],
)
def test_signed_nonsense_is_named_too(type_name: str, value: bytes, reason: str) -> None:
    """Goal: a valid signature does not make nonsense pass. Method: sign foreign types and broken bytes."""
    envelope = Envelope("runs", 3, "run-1", type_name, value)
    headers = (("signature", RING.sign(envelope)), ("type", type_name.encode()))
    assert reason_of(Record("runs", 3, 10, b"run-1", value, headers, 0)) == reason


def test_a_record_names_its_bytes() -> None:
    """Goal: dead letters can name a payload without holding it. Method: digest of value and of none."""
    record = record_of(claimed())
    assert len(record.value_digest) == 64
    assert replace(record, value=None).value_digest != record.value_digest


@given(value=st.binary(max_size=200), signature=st.binary(max_size=60))
def test_hostile_bytes_raise_only_bad_record(value: bytes, signature: bytes) -> None:
    """Goal: no input escapes the contract's reasons. Method: random values under random and genuine signatures."""
    envelope = Envelope("runs", 3, "run-1", "esper.leyline.v1.TrainingRunClaimed", value)
    for header in (signature, RING.sign(envelope)):
        headers = (("signature", header), ("type", envelope.type_name.encode()))
        record = Record("runs", 3, 10, b"run-1", value, headers, 0)
        with pytest.raises(BadRecord):
            decode(record, open_record(record, keyring=RING, allowed=lambda *_: True))
