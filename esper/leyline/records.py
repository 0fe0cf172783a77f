"""A record as Kafka holds it, and the checks between its bytes and a message that may be believed.

The order is fixed: verify the exact bytes, parse the meta, check it against the record, and only
then decode the message. Nothing is ever serialised again to be checked: protobuf's serialisation
is not canonical.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import ClassVar, Final, cast

from google.protobuf.message import DecodeError, Message

from esper.leyline.registry import EVENT_TYPES, EventMessage
from esper.leyline.signing import KEY_ID_BYTES, SIGNATURE_BYTES, SIGNER_TYPES, Envelope, KeyRing, Verdict
from esper.leyline.upcasting import CURRENT_VERSIONS, UpcastError, current_version, is_understood, upcast
from esper.leyline.v1 import operations_pb2 as ops
from esper.leyline.v1.meta_pb2 import AnyEvent, EventMeta

SIGNATURE_HEADER: Final = "signature"
TYPE_HEADER: Final = "type"
#: 8 MiB for an inline artifact plus its message around it; larger values are refused before any parse.
VALUE_BYTES_MAX: Final = 9 * 1024 * 1024
_EVENT_ID_LENGTH: Final = 32
#: Most that the time of an event may lie after the broker's: as far as Kerberos lets clocks differ (RFC 4120, 5.5.2).
#: No setting, so that a log is judged tomorrow as it is today.
CLOCK_SKEW_MS_MAX: Final = 300_000
#: 0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z, the range that timestamp.proto states.
_TIME_SECONDS_MIN: Final = -62_135_596_800
_TIME_SECONDS_MAX: Final = 253_402_300_799
_NANOS_PER_SECOND: Final = 1_000_000_000

#: Whether records of (topic, type, source) are expected; topics/*.yaml answers.
Allowed = Callable[[str, str, str], bool]
#: Names and contents, in order.
Headers = tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True, slots=True, init=False)
class Record:
    """One Kafka record, exactly as it was read."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    append_time_ms: int = 0

    def __init__(
        self,
        topic: str,
        partition: int,
        offset: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        append_time_ms: int = 0,
    ) -> None:
        # One is made for every record read. What `dataclass` would write takes five times as long, as long as its MAC.
        _set_topic(self, topic)
        _set_partition(self, partition)
        _set_offset(self, offset)
        _set_key(self, key)
        _set_value(self, value)
        _set_headers(self, headers)
        _set_append_time_ms(self, append_time_ms)

    def header(self, name: str) -> bytes | None:
        """Return the only header called `name`; None when absent or given more than once."""
        found, times = None, 0
        for key, value in self.headers:
            if key == name:
                found, times = value, times + 1
        return found if times == 1 else None

    @property
    def value_digest(self) -> str:
        """SHA-256 of the value, 64 hexadecimal digits."""
        return hashlib.sha256(self.value or b"").hexdigest()


_SLOTS: Final = vars(Record)
_set_topic: Final = _SLOTS["topic"].__set__
_set_partition: Final = _SLOTS["partition"].__set__
_set_offset: Final = _SLOTS["offset"].__set__
_set_key: Final = _SLOTS["key"].__set__
_set_value: Final = _SLOTS["value"].__set__
_set_headers: Final = _SLOTS["headers"].__set__
_set_append_time_ms: Final = _SLOTS["append_time_ms"].__set__


class BadRecord(Exception):
    """A record that must not be believed; `reason` is the contract's word, `detail` says more."""

    retriable: ClassVar[bool] = False

    def __init__(self, reason: ops.DeadLetterReason, detail: str) -> None:
        super().__init__(f"{ops.DeadLetterReason.Name(reason)}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[BadRecord], tuple[ops.DeadLetterReason, str]]:
        """Travel between processes as what it was made of."""
        return type(self), (self.reason, self.detail)


_VERDICTS: Final = {
    Verdict.UNSIGNED: (ops.DEAD_LETTER_REASON_UNSIGNED, "no signature header, or more than one"),
    Verdict.UNKNOWN_KEY: (ops.DEAD_LETTER_REASON_UNKNOWN_KEY, "signed with a key that is not in the ring"),
    Verdict.BAD: (ops.DEAD_LETTER_REASON_BAD_SIGNATURE, "the signature does not fit the bytes at this place"),
}


def _text(raw: bytes | None) -> str | None:
    try:
        return None if raw is None else raw.decode()
    except UnicodeDecodeError:
        return None


#: (key, type, signature, value) of a record whose signature holds.
Authentic = tuple[str, str, bytes, bytes]
#: What `authenticate` does with one ring.
Authenticated = Callable[[Record], Authentic]


def _signature_and_type(headers: Headers) -> tuple[bytes | None, bytes | None]:
    """Return what `Record.header` does for both, in one pass."""
    signature = type_bytes = None
    signatures = types = 0
    for name, content in headers:
        if name == SIGNATURE_HEADER:
            signature, signatures = content, signatures + 1
        elif name == TYPE_HEADER:
            type_bytes, types = content, types + 1
    return signature if signatures == 1 else None, type_bytes if types == 1 else None


def authenticate(record: Record, keyring: KeyRing) -> Authentic:
    """Return (key, type, signature, value) of a record whose signature holds; nothing of its meta is checked yet.

    Raises:
        BadRecord: it does not hold, or its key was revoked.
    """
    value = record.value
    if not value:
        raise BadRecord(ops.DEAD_LETTER_REASON_EMPTY, "the record has no value")
    if len(value) > VALUE_BYTES_MAX:
        raise BadRecord(ops.DEAD_LETTER_REASON_TOO_LARGE, f"{len(value)} bytes, at most {VALUE_BYTES_MAX}")
    signature, type_bytes = _signature_and_type(record.headers)
    key, type_name = _text(record.key), _text(type_bytes)
    if signature is None:
        reason, detail = _VERDICTS[Verdict.UNSIGNED]
        raise BadRecord(reason, detail)
    if key is None or type_name is None:
        raise BadRecord(ops.DEAD_LETTER_REASON_INCONSISTENT, "the key or the type header is missing or not UTF-8")
    verdict = keyring.verify(Envelope(record.topic, record.partition, key, type_name, value), signature)
    if verdict is not Verdict.GOOD:
        reason, detail = _VERDICTS[verdict]
        raise BadRecord(reason, detail)
    if keyring.revocations:
        _check_not_revoked(record, keyring, signature[:KEY_ID_BYTES].hex())
    return key, type_name, signature, value


def _check_not_revoked(record: Record, keyring: KeyRing, key_id: str) -> None:
    if keyring.revocations.covers(key_id, record.topic, record.partition, record.offset):
        detail = f"key {key_id} was revoked at or before this offset"
        raise BadRecord(ops.DEAD_LETTER_REASON_REVOKED_KEY, detail)


def _check_signer(record: Record, keyring: KeyRing, signature: bytes, type_name: str, source: str) -> None:
    problem = keyring.signer_problem(
        signature,
        type_name=type_name,
        source=source,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
    )
    if problem:
        raise BadRecord(ops.DEAD_LETTER_REASON_WRONG_SIGNER, problem)


def _inconsistency(meta: EventMeta, key: str, type_name: str, seconds: int, nanos: int) -> str:
    """Return what in `meta` disagrees with its record, or nothing."""
    if meta.type != type_name:
        return "meta.type is not the record's type"
    if meta.subject != key:
        return "meta.subject is not the record's key"
    if len(meta.event_id) != _EVENT_ID_LENGTH:
        return "meta.event_id is missing or malformed"
    if not meta.producer_id or meta.sequence == 0:
        return "meta.producer_id or meta.sequence is missing"
    if not (_TIME_SECONDS_MIN <= seconds <= _TIME_SECONDS_MAX and 0 <= nanos < _NANOS_PER_SECOND):
        return "meta.time is no time"
    return ""


def _future_time(ahead_ms: int) -> BadRecord:
    """Return why what claims to be made after it was appended is refused: it would never grow stale."""
    detail = f"its time lies {ahead_ms // 1_000} s after its append, {CLOCK_SKEW_MS_MAX // 1_000} s are believed"
    return BadRecord(ops.DEAD_LETTER_REASON_FUTURE_TIME, detail)


def open_record(
    record: Record, *, keyring: KeyRing, allowed: Allowed, authenticated: Authenticated | None = None
) -> EventMeta:
    """Return the meta of a record that is authentic, consistent and in its right place.

    Raises:
        BadRecord: it is not; the reason is one of the contract's.
    """
    return open_event(record, keyring=keyring, allowed=allowed, wanted=(), authenticated=authenticated)[0]


def open_event(
    record: Record,
    *,
    keyring: KeyRing,
    allowed: Allowed,
    wanted: Container[str],
    authenticated: Authenticated | None = None,
) -> tuple[EventMeta, Message | None]:
    """Return what `open_record` does and, of the types that are `wanted`, the message that holds this meta.

    The value is parsed once for both, not twice, and the message brought to the current version of its type. No
    message where it does not decode as its type, or has no form in that version: `decode` says so. Who opens many
    gives as `authenticated` what an `Authenticator` of this ring does: the same, in half the time.

    Raises:
        BadRecord: as `open_record`.
    """
    found = authenticate(record, keyring) if authenticated is None else authenticated(record)
    key, type_name, signature, value = found
    if type_name not in EVENT_TYPES:
        raise BadRecord(ops.DEAD_LETTER_REASON_UNKNOWN_TYPE, f"type {type_name!r} is not in this contract")
    message = _decoded(value, type_name) if type_name in wanted else None
    meta = _meta_of(value) if message is None else cast("EventMessage", message).meta
    time = meta.time
    seconds, nanos = time.seconds, time.nanos
    problem = _inconsistency(meta, key, type_name, seconds, nanos)
    if problem:
        raise BadRecord(ops.DEAD_LETTER_REASON_INCONSISTENT, problem)
    topic, source = record.topic, meta.source
    if not allowed(topic, type_name, source):
        detail = f"topic {topic} takes no {type_name} from {source!r}"
        raise BadRecord(ops.DEAD_LETTER_REASON_NOT_ALLOWED, detail)
    if type_name in SIGNER_TYPES or len(signature) != SIGNATURE_BYTES:
        _check_signer(record, keyring, signature, type_name, source)
    ahead_ms = seconds * 1_000 + nanos // 1_000_000 - record.append_time_ms
    if (
        ahead_ms > CLOCK_SKEW_MS_MAX and record.append_time_ms > 0
    ):  # Before its append there is nothing to compare with.
        raise _future_time(ahead_ms)
    if message is not None and meta.schema_version != CURRENT_VERSIONS.get(type_name, 1):
        return _of_other_version(value, message)
    return meta, message


def _of_other_version(value: bytes, message: Message) -> tuple[EventMeta, Message | None]:
    """Return an event that is not of its type's current version as one that is; without its message where it cannot."""
    try:
        _bring_to_current(message)
    except BadRecord:
        return _meta_of(value), None
    return cast("EventMessage", message).meta, message


def _decoded(value: bytes, type_name: str) -> Message | None:
    try:
        return EVENT_TYPES[type_name].FromString(value)
    except DecodeError:
        return None


def _meta_of(value: bytes) -> EventMeta:
    try:
        return AnyEvent.FromString(value).meta
    except DecodeError as error:
        raise BadRecord(ops.DEAD_LETTER_REASON_UNDECODABLE, "the value is not a protobuf event") from error


def signature_of(record: Record) -> bytes:
    """Return the signature of a record that `open_record` let pass."""
    name, first = record.headers[0]  # Where publishers put it.
    signature = first if name == SIGNATURE_HEADER else record.header(SIGNATURE_HEADER)
    assert signature is not None, "an opened record has one signature"
    return signature


def decode(record: Record, meta: EventMeta) -> Message:
    """Return the message of a record that `open_record` let pass, in the current version of its type.

    Raises:
        BadRecord: as `decode_value`.
    """
    assert record.value is not None, "an opened record has a value"
    return decode_value(meta.type, record.value)


def decode_value(type_name: str, value: bytes) -> Message:
    """Return the message of an authentic value of a known type (full name), in the current version of that type.

    Raises:
        BadRecord: the value does not decode as its type, or is of a version that this code does not know.
    """
    message = _decoded(value, type_name)
    if message is None:
        detail = f"the value does not decode as {type_name}"
        raise BadRecord(ops.DEAD_LETTER_REASON_UNDECODABLE, detail)
    if cast("EventMessage", message).meta.schema_version != CURRENT_VERSIONS.get(type_name, 1):
        _bring_to_current(message)
    return message


def _bring_to_current(message: Message) -> None:
    """Bring a message to the current version of its type; raise BadRecord where that cannot be."""
    type_name, version = message.DESCRIPTOR.full_name, cast("EventMessage", message).meta.schema_version
    if not is_understood(type_name, version):
        detail = f"{type_name} of version {version}; this installation knows up to {current_version(type_name)}"
        raise BadRecord(ops.DEAD_LETTER_REASON_UNKNOWN_VERSION, detail)
    try:
        upcast(cast("EventMessage", message))
    except UpcastError as error:
        raise BadRecord(ops.DEAD_LETTER_REASON_UNDECODABLE, str(error)) from error
