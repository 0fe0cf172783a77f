"""Signatures over the exact bytes of a record, and the ring of keys that makes and checks them.

The MAC is HMAC-SHA256 (RFC 2104) over the length-prefixed fields domain, topic, partition, key, type
and value, in the manner of DSSE's pre-authentication encoding: a record that is moved to another topic,
partition, key or type no longer verifies. Offsets and append times are the broker's and lie outside.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

_DOMAIN: Final = b"esper-record-v1"
_KEY_DOMAIN: Final = b"esper-leyline-mac-key-v1"
_KEY_ID_DOMAIN: Final = b"esper-leyline-key-id-v1"
KEY_ID_BYTES: Final = 8
MAC_BYTES: Final = 32
SIGNATURE_BYTES: Final = KEY_ID_BYTES + MAC_BYTES
#: A shorter secret can be guessed; 32 bytes are the strength of the MAC itself.
SECRET_BYTES_MIN: Final = 32


class Verdict(Enum):
    """What a signature turned out to be."""

    GOOD = "good"
    UNSIGNED = "unsigned"
    UNKNOWN_KEY = "unknown key"
    BAD = "bad"


@dataclass(frozen=True)
class Envelope:
    """Everything that a record's signature covers."""

    topic: str
    partition: int
    key: str
    type_name: str
    value: bytes

    def signed_bytes(self) -> bytes:
        """Return the length-prefixed fields: 4-byte big-endian lengths, then the bytes."""
        partition = self.partition.to_bytes(4, "big")
        fields = (_DOMAIN, self.topic.encode(), partition, self.key.encode(), self.type_name.encode(), self.value)
        return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def fingerprint(secret: bytes) -> str:
    """Return a public name of `secret`, 16 hexadecimal digits; it gives nothing of the secret away."""
    return hmac.digest(secret, _KEY_ID_DOMAIN, "sha256")[:KEY_ID_BYTES].hex()


def _mac_key(secret: bytes) -> bytes:
    """Derive the MAC key: one HKDF-expand block (RFC 5869), so that the secret signs nothing itself."""
    return hmac.digest(secret, _KEY_DOMAIN + b"\x01", "sha256")


class KeyRing:
    """One key that signs, and older ones that still verify.

    Holds derived keys only. Safe to share between threads.
    """

    def __init__(self, signing_key_id: bytes, keys: dict[bytes, bytes]) -> None:
        assert signing_key_id in keys, "the signing key is in the ring"
        self._signing_key_id = signing_key_id
        # A pre-keyed HMAC is copied for each record: that is a third cheaper than keying it anew.
        self._prototypes = {key_id: hmac.new(key, digestmod=hashlib.sha256) for key_id, key in keys.items()}

    @classmethod
    def from_secrets(cls, signing: bytes, verifying: Sequence[bytes] = ()) -> KeyRing:
        """Build a ring from raw secrets; each must hold at least 32 bytes.

        Raises:
            ValueError: a secret is too short.
        """
        for secret in (signing, *verifying):
            if len(secret) < SECRET_BYTES_MIN:
                raise ValueError(
                    f"a signing secret needs at least {SECRET_BYTES_MIN} bytes, this one has {len(secret)}"
                )
        keys = {bytes.fromhex(fingerprint(secret)): _mac_key(secret) for secret in (signing, *verifying)}
        return cls(bytes.fromhex(fingerprint(signing)), keys)

    @property
    def signing_key_id(self) -> str:
        """The signing key's public name, 16 hexadecimal digits."""
        return self._signing_key_id.hex()

    def _mac(self, key_id: bytes, envelope: Envelope) -> bytes:
        mac = self._prototypes[key_id].copy()
        mac.update(envelope.signed_bytes())
        return mac.digest()

    def sign(self, envelope: Envelope) -> bytes:
        """Return the signature header's value: 8-byte key id, then the 32-byte MAC."""
        return self._signing_key_id + self._mac(self._signing_key_id, envelope)

    def verify(self, envelope: Envelope, signature: bytes | None) -> Verdict:
        """Check `signature` in constant time; work is equal for known and unknown keys."""
        if signature is None:
            return Verdict.UNSIGNED
        if len(signature) != SIGNATURE_BYTES:
            return Verdict.BAD
        key_id, mac = signature[:KEY_ID_BYTES], signature[KEY_ID_BYTES:]
        known = key_id in self._prototypes
        expected = self._mac(key_id if known else self._signing_key_id, envelope)
        matches = hmac.compare_digest(expected, mac)
        if not known:
            return Verdict.UNKNOWN_KEY
        return Verdict.GOOD if matches else Verdict.BAD


def mac_of(signature: bytes) -> bytes:
    """Return the MAC part of a signature header, as `previous_mac` of the next record carries it."""
    return signature[KEY_ID_BYTES:]
