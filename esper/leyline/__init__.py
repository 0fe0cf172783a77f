"""Leyline: the only vocabulary. Messages, their meta, their signatures, and what may be believed."""

from esper.leyline.ed25519 import PrivateKey, PublicKey
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
from esper.leyline.revocations import HMAC_ALGORITHM, KEY_OPERATOR, Revocations, fold_key_event, speaks_about_keys
from esper.leyline.signing import (
    MAC_BYTES,
    SECRET_BYTES_MIN,
    SIGNATURE_BYTES,
    SIGNER_SIGNATURE_BYTES,
    SIGNER_TYPES,
    Envelope,
    KeyRing,
    KeySet,
    Verdict,
    fingerprint,
    mac_of,
)

__all__ = [
    "EVENT_TYPES",
    "HMAC_ALGORITHM",
    "KEY_OPERATOR",
    "MAC_BYTES",
    "PACKAGE",
    "SECRET_BYTES_MIN",
    "SIGNATURE_BYTES",
    "SIGNATURE_HEADER",
    "SIGNER_SIGNATURE_BYTES",
    "SIGNER_TYPES",
    "TYPE_HEADER",
    "VALUE_BYTES_MAX",
    "Allowed",
    "BadRecord",
    "Envelope",
    "EventMessage",
    "KeyRing",
    "KeySet",
    "PrivateKey",
    "PublicKey",
    "Record",
    "Revocations",
    "Verdict",
    "decode",
    "fingerprint",
    "fold_key_event",
    "full_name",
    "mac_of",
    "open_record",
    "short_name",
    "speaks_about_keys",
    "type_of",
]
