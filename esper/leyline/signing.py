"""Signatures over the exact bytes of a record, and the ring of keys that makes and checks them.

The MAC is HMAC-SHA256 (RFC 2104) over the length-prefixed fields domain, topic, partition, key, type
and value, in the manner of DSSE's pre-authentication encoding: a record that is moved to another topic,
partition, key or type no longer verifies. Offsets and append times are the broker's and lie outside.
Whoever verifies a MAC can also make one; types that order or bring something into a model may therefore
be signed with an Ed25519 key of their source (RFC 8032), over the same fields under another domain word.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple

from esper.leyline.ed25519 import ED25519_SIGNATURE_BYTES, PrivateKey, PublicKey
from esper.leyline.registry import full_name
from esper.leyline.revocations import Revocations

_DOMAIN: Final = b"esper-record-v1"
_SIGNER_DOMAIN: Final = b"esper-record-ed25519-v1"
_KEY_DOMAIN: Final = b"esper-leyline-mac-key-v1"
_KEY_ID_DOMAIN: Final = b"esper-leyline-key-id-v1"
KEY_ID_BYTES: Final = 8
MAC_BYTES: Final = 32
SIGNATURE_BYTES: Final = KEY_ID_BYTES + MAC_BYTES
SIGNER_SIGNATURE_BYTES: Final = KEY_ID_BYTES + ED25519_SIGNATURE_BYTES
#: A shorter secret can be guessed; 32 bytes are the strength of the MAC itself.
SECRET_BYTES_MIN: Final = 32
#: Longer ones are nobody's; they must not fill the memory of those who only refuse them.
_KEPT_KEY_CHARACTERS_MAX: Final = 256
_BLOCK_BYTES: Final = 64
_INNER_PAD: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD: Final = bytes(byte ^ 0x5C for byte in range(256))
#: What changes a model, brings a kernel into it, or takes a key away.
SIGNER_TYPES: Final = frozenset(
    full_name(name)
    for name in ("AdaptationCommand", "KernelCatalogUpdate", "KernelArtifactReady", "KeyRotated", "KeyRevoked")
)


class Verdict(Enum):
    """What a signature turned out to be."""

    GOOD = "good"
    UNSIGNED = "unsigned"
    UNKNOWN_KEY = "unknown key"
    BAD = "bad"


class Envelope(NamedTuple):
    """Everything that a record's signature covers; a tuple, because one is made for every record read."""

    topic: str
    partition: int
    key: str
    type_name: str
    value: bytes

    def signed_bytes(self, domain: bytes = _DOMAIN) -> bytes:
        """Return the length-prefixed fields: 4-byte big-endian lengths, then the bytes."""
        topic, partition, key, type_name, value = self
        short = len(key) <= _KEPT_KEY_CHARACTERS_MAX and len(type_name) <= _KEPT_KEY_CHARACTERS_MAX
        before = (_kept_place if short else _place)(domain, topic, partition, key, type_name)
        return before + len(value).to_bytes(4, "big") + value


def _place(domain: bytes, topic: str, partition: int, key: str, type_name: str) -> bytes:
    """Return the length-prefixed fields before the value."""
    fields = (domain, topic.encode(), partition.to_bytes(4, "big"), key.encode(), type_name.encode())
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


#: A run's records share what stands before their values, and making it costs as much as the MAC.
_kept_place = lru_cache(maxsize=4096)(_place)


def fingerprint(secret: bytes) -> str:
    """Return a public name of `secret`, 16 hexadecimal digits; it gives nothing of the secret away."""
    return hmac.digest(secret, _KEY_ID_DOMAIN, "sha256")[:KEY_ID_BYTES].hex()


def _mac_key(secret: bytes) -> bytes:
    """Derive the MAC key: one HKDF-expand block (RFC 5869), so that the secret signs nothing itself."""
    return hmac.digest(secret, _KEY_DOMAIN + b"\x01", "sha256")


class KeyedHash:
    """HMAC-SHA256 under one key of at most 64 bytes (RFC 2104), keyed once.

    Two hashes that stand after the padded key are copied for each MAC, as the RFC's section 4 suggests: half the
    time of `hmac.digest`, which keys anew, and a third less than a copy of an `hmac.HMAC`.
    """

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        assert len(key) <= _BLOCK_BYTES, "a longer key would have to be hashed first"
        padded = key.ljust(_BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(padded.translate(_INNER_PAD))
        self._outer = hashlib.sha256(padded.translate(_OUTER_PAD))

    def begun(self, content: bytes) -> tuple[hashlib._Hash, hashlib._Hash]:
        """Return copies of both hashes, the inner one after the beginning of some content."""
        inner = self._inner.copy()
        inner.update(content)
        return inner, self._outer.copy()

    def mac(self, content: bytes) -> bytes:
        """Return the 32 bytes of the MAC of `content`."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(content)
        outer.update(inner.digest())
        return outer.digest()


@dataclass(frozen=True)
class KeySet:
    """What a ring holds at one time; never changed, only replaced as a whole."""

    signing_key_id: bytes
    #: Key id -> the MAC under that key.
    macs: Mapping[bytes, KeyedHash]
    #: Key id -> a source's public key.
    public_keys: Mapping[bytes, PublicKey]
    #: Source -> the key that it signs with.
    private_keys: Mapping[str, PrivateKey]
    #: Whether the types of `SIGNER_TYPES` are signed, and believed, with their source's own key only.
    signers_required: bool

    @classmethod
    def of(
        cls,
        signing: bytes,
        verifying: Sequence[bytes] = (),
        *,
        public_keys: Sequence[PublicKey] = (),
        private_keys: Sequence[PrivateKey] = (),
        signers_required: bool = False,
    ) -> KeySet:
        """Build a set from raw secrets, each at least 32 bytes, and from the keys of sources.

        Raises:
            ValueError: a secret is too short.
        """
        for secret in (signing, *verifying):
            if len(secret) < SECRET_BYTES_MIN:
                raise ValueError(
                    f"a signing secret needs at least {SECRET_BYTES_MIN} bytes, this one has {len(secret)}"
                )
        secrets = {bytes.fromhex(fingerprint(secret)): _mac_key(secret) for secret in (signing, *verifying)}
        publics = [*public_keys, *(key.public for key in private_keys)]
        return cls(
            signing_key_id=bytes.fromhex(fingerprint(signing)),
            macs={key_id: KeyedHash(key) for key_id, key in secrets.items()},
            public_keys={key.key_id: key for key in publics},
            private_keys={key.public.source: key for key in private_keys},
            signers_required=signers_required,
        )

    def __repr__(self) -> str:
        return f"KeySet(signing_key_id={self.signing_key_id.hex()}, {len(self.macs)} secrets)"


class KeyRing:
    """One key that signs, older ones that still verify, the keys of sources, and what was revoked.

    Holds derived keys only. Safe to share between threads: the keys and the revocations are immutable and
    replaced as a whole.
    """

    def __init__(self, keys: KeySet) -> None:
        self.keys = keys
        #: What the events about keys add up to; whoever follows `operations` replaces it.
        self.revocations = Revocations()

    @classmethod
    def from_secrets(cls, signing: bytes, verifying: Sequence[bytes] = ()) -> KeyRing:
        """Build a ring from raw secrets; each must hold at least 32 bytes.

        Raises:
            ValueError: a secret is too short.
        """
        return cls(KeySet.of(signing, verifying))

    @property
    def signing_key_id(self) -> str:
        """The signing key's public name, 16 hexadecimal digits."""
        return self.keys.signing_key_id.hex()

    def sign(self, envelope: Envelope, *, source: str = "") -> bytes:
        """Return the signature header's value: 8-byte key id, then the 32-byte MAC.

        Where signers are required, what `source` says of a type in `SIGNER_TYPES` gets the 64-byte signature of
        its own key instead.

        Raises:
            LookupError: that key is not here.
        """
        keys = self.keys
        if keys.signers_required and envelope.type_name in SIGNER_TYPES:
            signer = keys.private_keys[source]
            return signer.public.key_id + signer.sign(envelope.signed_bytes(_SIGNER_DOMAIN))
        return keys.signing_key_id + keys.macs[keys.signing_key_id].mac(envelope.signed_bytes())

    def verify(self, envelope: Envelope, signature: bytes | None) -> Verdict:
        """Check `signature`: MACs in constant time, with equal work for known and unknown keys.

        The length tells the algorithm.
        """
        if signature is None:
            return Verdict.UNSIGNED
        if len(signature) != SIGNATURE_BYTES:
            return self._verify_signer(envelope, signature)
        keys = self.keys
        known = keys.macs.get(signature[:KEY_ID_BYTES])
        expected = (known or keys.macs[keys.signing_key_id]).mac(envelope.signed_bytes())
        matches = hmac.compare_digest(expected, signature[KEY_ID_BYTES:])
        if known is None:
            return Verdict.UNKNOWN_KEY
        return Verdict.GOOD if matches else Verdict.BAD

    def _verify_signer(self, envelope: Envelope, signature: bytes) -> Verdict:
        if len(signature) != SIGNER_SIGNATURE_BYTES:
            return Verdict.BAD
        known = self.keys.public_keys.get(signature[:KEY_ID_BYTES])
        if known is None:
            return Verdict.UNKNOWN_KEY
        good = known.verifies(signature[KEY_ID_BYTES:], envelope.signed_bytes(_SIGNER_DOMAIN))
        return Verdict.GOOD if good else Verdict.BAD

    def signer_problem(
        self, signature: bytes, *, type_name: str, source: str, topic: str, partition: int, offset: int
    ) -> str:
        """Return why a verified signature may not speak for `source` at this place, or nothing."""
        keys = self.keys
        if len(signature) == SIGNATURE_BYTES:
            if not keys.signers_required or type_name not in SIGNER_TYPES:
                return ""
            if self.revocations.hmac_suffices(topic, partition, offset):
                return ""
            return f"it needs the Ed25519 key of {source!r}; a MAC can be made by whoever verifies it"
        owner = keys.public_keys.get(signature[:KEY_ID_BYTES])
        if owner is None or owner.source != source:
            return f"{source!r} does not sign with key {signature[:KEY_ID_BYTES].hex()}"
        return ""


def mac_of(signature: bytes) -> bytes:
    """Return the MAC part of a signature header, as `previous_mac` of the next record carries it."""
    return signature[KEY_ID_BYTES:]
