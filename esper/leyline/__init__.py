"""Leyline: the only vocabulary. Messages, their meta, their signatures, and what may be believed."""

from esper.leyline.records import (
    SIGNATURE_HEADER,
    TYPE_HEADER,
    VALUE_BYTES_MAX,
    Allowed,
    BadRecord,
    Record,
    decode,
    open_record,
)
from esper.leyline.registry import EVENT_TYPES, PACKAGE, EventMessage, full_name, short_name, type_of
from esper.leyline.signing import (
    MAC_BYTES,
    SECRET_BYTES_MIN,
    SIGNATURE_BYTES,
    Envelope,
    KeyRing,
    Verdict,
    fingerprint,
    mac_of,
)

__all__ = [
    "EVENT_TYPES",
    "MAC_BYTES",
    "PACKAGE",
    "SECRET_BYTES_MIN",
    "SIGNATURE_BYTES",
    "SIGNATURE_HEADER",
    "TYPE_HEADER",
    "VALUE_BYTES_MAX",
    "Allowed",
    "BadRecord",
    "Envelope",
    "EventMessage",
    "KeyRing",
    "Record",
    "Verdict",
    "decode",
    "fingerprint",
    "full_name",
    "mac_of",
    "open_record",
    "short_name",
    "type_of",
]
