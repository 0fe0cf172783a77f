"""Hostile records: what makes a genuine record one that must not be believed, and why it must be set aside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

from google.protobuf.timestamp_pb2 import Timestamp

from esper.core.clock import SYSTEM_CLOCK
from esper.leyline import CLOCK_SKEW_MS_MAX, EVENT_TYPES, SIGNATURE_HEADER, EventMessage, KeyRing, Record, full_name
from esper.oona import Fabric, TopicSpec
from tests.oona.log import signed_record

STRANGER = KeyRing.from_secrets(b"a secret that this home does not know")


@dataclass(frozen=True)
class Target:
    """One topic under attack, and a genuine record of it to start from."""

    fabric: Fabric
    spec: TopicSpec
    genuine: Record
    key: str

    @property
    def source(self) -> str:
        """A source that may write the topic."""
        return self.spec.writers[0]

    def message(self) -> EventMessage:
        """Return a fresh message that the topic carries."""
        return message_of(self.spec)

    def signed(self, **wrong: object) -> Record:
        """Return a record signed with the home's own key, with something wrong."""
        fields: dict[str, object] = {"key": self.key, "source": self.source, **wrong}
        return signed_record(self.fabric, self.message(), **fields)  # type: ignore[arg-type]  # names are checked by protobuf


def message_of(spec: TopicSpec) -> EventMessage:
    """Return an empty message of the topic's first type."""
    return cast("EventMessage", EVENT_TYPES[full_name(spec.messages[0])]())


def with_headers(record: Record, **changed: bytes | None) -> Record:
    """Return `record` with headers replaced, or left out where None is given."""
    headers = {name: value for name, value in record.headers if name not in changed}
    headers |= {name: value for name, value in changed.items() if value is not None}
    return replace(record, headers=tuple(headers.items()))


def flipped(content: bytes, at: int, bit: int = 0) -> bytes:
    """Return `content` with one bit of the byte `at` turned."""
    return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]


def other_topic(target: Target) -> TopicSpec:
    """Return a topic that is not the target's and has messages of its own."""
    return next(spec for spec in target.fabric.topics if spec.name not in (target.spec.name, "telemetry"))


def ahead(seconds: float) -> Timestamp:
    """Return the time by which every clock is right in so many seconds."""
    time = Timestamp()
    time.FromNanoseconds(SYSTEM_CLOCK.now_ns() + int(seconds * 1e9))
    return time


#: Name -> (how to make it from a topic's genuine record, the reason it must be listed with).
HOSTILE: dict[str, tuple[Callable[[Target], Record], str]] = {
    "unsigned": (lambda t: with_headers(t.genuine, signature=None), "UNSIGNED"),
    "foreign": (lambda t: Record(t.spec.name, t.genuine.partition, -1, b"\xff\x00", b'{"hello": "world"}'), "UNSIGNED"),
    "signed twice": (lambda t: replace(t.genuine, headers=(*t.genuine.headers, *t.genuine.headers)), "UNSIGNED"),
    "null value": (lambda t: replace(t.genuine, value=None), "EMPTY"),
    "zero bytes": (lambda t: replace(t.genuine, value=b""), "EMPTY"),
    "forged with another key": (lambda t: t.signed(keyring=STRANGER), "UNKNOWN_KEY"),
    "truncated": (lambda t: replace(t.genuine, value=(t.genuine.value or b"")[:-1]), "BAD_SIGNATURE"),
    "tampered": (lambda t: replace(t.genuine, value=flipped(t.genuine.value or b"", 20)), "BAD_SIGNATURE"),
    "tampered signature": (
        lambda t: with_headers(t.genuine, signature=flipped(t.genuine.header(SIGNATURE_HEADER) or b"", 39)),
        "BAD_SIGNATURE",
    ),
    "truncated signature": (
        lambda t: with_headers(t.genuine, signature=(t.genuine.header(SIGNATURE_HEADER) or b"")[:39]),
        "BAD_SIGNATURE",
    ),
    "another key of the record": (lambda t: replace(t.genuine, key=b"run-other"), "BAD_SIGNATURE"),
    "another type": (lambda t: with_headers(t.genuine, type=b"esper.leyline.v1.FieldReport2"), "BAD_SIGNATURE"),
    "moved from another topic": (
        lambda t: replace(
            signed_record(t.fabric, message_of(other_topic(t)), key=t.key, source=other_topic(t).writers[0]),
            topic=t.spec.name,
            partition=t.genuine.partition,
        ),
        "BAD_SIGNATURE",
    ),
    "no key": (lambda t: replace(t.genuine, key=None), "INCONSISTENT"),
    "no type": (lambda t: with_headers(t.genuine, type=None), "INCONSISTENT"),
    "subject is not the key": (lambda t: t.signed(subject="another"), "INCONSISTENT"),
    "meta of another type": (lambda t: t.signed(type="esper.leyline.v1.EventMeta"), "INCONSISTENT"),
    "no event id": (lambda t: t.signed(event_id=""), "INCONSISTENT"),
    "no producer": (lambda t: t.signed(producer_id=""), "INCONSISTENT"),
    "no sequence": (lambda t: t.signed(sequence=0), "INCONSISTENT"),
    "a time that is none": (lambda t: t.signed(time=Timestamp(seconds=2**60, nanos=-1)), "INCONSISTENT"),
    "future time": (lambda t: t.signed(time=ahead(2 * CLOCK_SKEW_MS_MAX / 1_000)), "FUTURE_TIME"),
    "signed nonsense": (lambda t: t.signed(value=b"\xff\xff\xff\xff"), "UNDECODABLE"),
    "type that nobody knows": (lambda t: t.signed(type_name="esper.leyline.v1.Unheard"), "UNKNOWN_TYPE"),
    "source that may not write": (lambda t: t.signed(source="stranger"), "NOT_ALLOWED"),
    "type of another topic": (
        lambda t: signed_record(
            t.fabric, message_of(other_topic(t)), key=t.key, source=other_topic(t).writers[0], topic=t.spec.name
        ),
        "NOT_ALLOWED",
    ),
}
