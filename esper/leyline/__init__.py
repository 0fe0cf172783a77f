"""Leyline: the only vocabulary. Messages, their meta, their signatures, and what may be believed."""

from esper.leyline.authenticator import Authenticator, Finding
from esper.leyline.contracts import load_contracts
from esper.leyline.ed25519 import PrivateKey, PublicKey
from esper.leyline.record_columns import NO_RECORDS, RecordColumns
from esper.leyline.records import (
    CLOCK_SKEW_MS_MAX,
    SIGNATURE_HEADER,
    TYPE_HEADER,
    VALUE_BYTES_MAX,
    Allowed,
    BadRecord,
    Record,
    authenticate,
    decode,
    decode_value,
    open_event,
    open_record,
)
from esper.leyline.registry import EVENT_TYPES, PACKAGE, SHIPPED_TYPES, EventMessage, full_name, short_name, type_of
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
from esper.leyline.upcasting import ContractError, Upcaster, current_version, needs_upcast
from esper.leyline.v1.meta_pb2 import AnyEvent

__all__ = [
    "CLOCK_SKEW_MS_MAX",
    "EVENT_TYPES",
    "HMAC_ALGORITHM",
    "KEY_OPERATOR",
    "MAC_BYTES",
    "NO_RECORDS",
    "PACKAGE",
    "SECRET_BYTES_MIN",
    "SHIPPED_TYPES",
    "SIGNATURE_BYTES",
    "SIGNATURE_HEADER",
    "SIGNER_SIGNATURE_BYTES",
    "SIGNER_TYPES",
    "TYPE_HEADER",
    "VALUE_BYTES_MAX",
    "Allowed",
    "AnyEvent",
    "Authenticator",
    "BadRecord",
    "ContractError",
    "Envelope",
    "EventMessage",
    "Finding",
    "KeyRing",
    "KeySet",
    "PrivateKey",
    "PublicKey",
    "Record",
    "RecordColumns",
    "Revocations",
    "Upcaster",
    "Verdict",
    "authenticate",
    "current_version",
    "decode",
    "decode_value",
    "fingerprint",
    "fold_key_event",
    "full_name",
    "load_contracts",
    "mac_of",
    "needs_upcast",
    "open_event",
    "open_record",
    "short_name",
    "speaks_about_keys",
    "type_of",
]
