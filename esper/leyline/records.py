"""A record as Kafka holds it, and the checks between its bytes and a message that may be believed.

The order is fixed: verify the exact bytes, parse the meta, check it against the record, and only
then decode the message. Nothing is ever serialised again to be checked: protobuf's serialisation
is not canonical.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

from google.protobuf.message import DecodeError, Message

from esper.leyline.registry import EVENT_TYPES
from esper.leyline.signing import KEY_ID_BYTES, Envelope, KeyRing, Verdict
from esper.leyline.v1 import operations_pb2 as ops
from esper.leyline.v1.meta_pb2 import AnyEvent, EventMeta

SIGNATURE_HEADER: Final = "signature"
TYPE_HEADER: Final = "type"
#: 8 MiB for an inline artifact plus its message around it; larger values are refused before any parse.
VALUE_BYTES_MAX: Final = 9 * 1024 * 1024
_EVENT_ID_LENGTH: Final = 32

#: Whether records of (topic, type, source) are expected; topics/*.yaml answers.
Allowed = Callable[[str, str, str], bool]


@dataclass(frozen=True)
class Record:
    """One Kafka record, exactly as it was read."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    append_time_ms: int = 0

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


class BadRecord(Exception):
    """A record that must not be believed; `reason` is the contract's word, `detail` says more."""

    retriable: ClassVar[bool] = False

    def __init__(self, reason: ops.DeadLetterReason, detail: str) -> None:
        super().__init__(f"{ops.DeadLetterReason.Name(reason)}: {detail}")
        self.reason = reason
        self.detail = detail


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


def _authenticate(record: Record, keyring: KeyRing) -> tuple[str, str, bytes]:
    """Return (key, type, signature) of a record whose signature holds; raise BadRecord otherwise."""
    if not record.value:
        raise BadRecord(ops.DEAD_LETTER_REASON_EMPTY, "the record has no value")
    if len(record.value) > VALUE_BYTES_MAX:
        raise BadRecord(ops.DEAD_LETTER_REASON_TOO_LARGE, f"{len(record.value)} bytes, at most {VALUE_BYTES_MAX}")
    signature = record.header(SIGNATURE_HEADER)
    key, type_name = _text(record.key), _text(record.header(TYPE_HEADER))
    if signature is None:
        reason, detail = _VERDICTS[Verdict.UNSIGNED]
        raise BadRecord(reason, detail)
    if key is None or type_name is None:
        raise BadRecord(ops.DEAD_LETTER_REASON_INCONSISTENT, "the key or the type header is missing or not UTF-8")
    envelope = Envelope(record.topic, record.partition, key, type_name, record.value)
    verdict = keyring.verify(envelope, signature)
    if verdict is not Verdict.GOOD:
        reason, detail = _VERDICTS[verdict]
        raise BadRecord(reason, detail)
    if keyring.revocations:
        _check_not_revoked(record, keyring, signature[:KEY_ID_BYTES].hex())
    return key, type_name, signature


def _check_not_revoked(record: Record, keyring: KeyRing, key_id: str) -> None:
    if keyring.revocations.covers(key_id, record.topic, record.partition, record.offset):
        detail = f"key {key_id} was revoked at or before this offset"
        raise BadRecord(ops.DEAD_LETTER_REASON_REVOKED_KEY, detail)


def _inconsistency(meta: EventMeta, key: str, type_name: str) -> str:
    """Return what in `meta` disagrees with its record, or nothing."""
    if meta.type != type_name:
        return "meta.type is not the record's type"
    if meta.subject != key:
        return "meta.subject is not the record's key"
    if len(meta.event_id) != _EVENT_ID_LENGTH:
        return "meta.event_id is missing or malformed"
    if not meta.producer_id or meta.sequence == 0:
        return "meta.producer_id or meta.sequence is missing"
    return ""


def open_record(record: Record, *, keyring: KeyRing, allowed: Allowed) -> EventMeta:
    """Return the meta of a record that is authentic, consistent and in its right place.

    Raises:
        BadRecord: it is not; the reason is one of the contract's.
    """
    key, type_name, signature = _authenticate(record, keyring)
    assert record.value is not None, "an authenticated record has a value"
    if type_name not in EVENT_TYPES:
        raise BadRecord(ops.DEAD_LETTER_REASON_UNKNOWN_TYPE, f"type {type_name!r} is not in this contract")
    try:
        meta = AnyEvent.FromString(record.value).meta
    except DecodeError as error:
        raise BadRecord(ops.DEAD_LETTER_REASON_UNDECODABLE, "the value is not a protobuf event") from error
    problem = _inconsistency(meta, key, type_name)
    if problem:
        raise BadRecord(ops.DEAD_LETTER_REASON_INCONSISTENT, problem)
    if not allowed(record.topic, type_name, meta.source):
        detail = f"topic {record.topic} takes no {type_name} from {meta.source!r}"
        raise BadRecord(ops.DEAD_LETTER_REASON_NOT_ALLOWED, detail)
    problem = keyring.signer_problem(
        signature,
        type_name=type_name,
        source=meta.source,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
    )
    if problem:
        raise BadRecord(ops.DEAD_LETTER_REASON_WRONG_SIGNER, problem)
    return meta


def decode(record: Record, meta: EventMeta) -> Message:
    """Return the message of a record that `open_record` let pass.

    Raises:
        BadRecord: the value does not decode as its type.
    """
    assert record.value is not None, "an opened record has a value"
    try:
        return EVENT_TYPES[meta.type].FromString(record.value)
    except DecodeError as error:
        detail = f"the value does not decode as {meta.type}"
        raise BadRecord(ops.DEAD_LETTER_REASON_UNDECODABLE, detail) from error
