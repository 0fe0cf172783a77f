"""Ed25519 keys of sources (RFC 8032): whoever verifies with the public half cannot sign.

`cryptography` is loaded when a key is first used, so that a process that meets none stays light.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PUBLIC_KEY_BYTES: Final = 32
ED25519_SIGNATURE_BYTES: Final = 64
_KEY_ID_DOMAIN: Final = b"esper-ed25519-key-id-v1"
_KEY_ID_BYTES: Final = 8
#: Points of small order in every encoding, without the sign bit: for such a "key" anybody finds signatures that
#: OpenSSL lets pass (Chalkias et al., "Taming the many EdDSAs", 2020; libsodium refuses the same list).
_SMALL_ORDER: Final = frozenset(
    bytes.fromhex(encoding)
    for encoding in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)


class PublicKey:
    """The public half of a source's key; verifies only what that source signed."""

    def __init__(self, raw: bytes, *, source: str) -> None:
        """Take 32 raw bytes; raises ValueError for another length, and for a key that anybody can sign for."""
        if len(raw) != PUBLIC_KEY_BYTES:
            raise ValueError(f"an Ed25519 public key has {PUBLIC_KEY_BYTES} bytes, this one has {len(raw)}")
        if raw[:-1] + bytes([raw[-1] & 0x7F]) in _SMALL_ORDER:
            raise ValueError("this Ed25519 public key is a point of small order: anybody can sign for it")
        self.raw = raw
        self.source = source
        self.key_id = hashlib.sha256(_KEY_ID_DOMAIN + raw).digest()[:_KEY_ID_BYTES]

    @cached_property
    def _check(self) -> Callable[[bytes, bytes], None]:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        return Ed25519PublicKey.from_public_bytes(self.raw).verify

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Return whether `signature` (64 bytes) is this key's over `message`."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._check(signature, message)
        except InvalidSignature:
            return False
        return True


class PrivateKey:
    """The private half of a source's key; its repr shows nothing of it."""

    def __init__(self, key: Ed25519PrivateKey, *, source: str) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes_raw(), source=source)

    @classmethod
    def generate(cls, *, source: str) -> PrivateKey:
        """Return a new key from the operating system's randomness."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(Ed25519PrivateKey.generate(), source=source)

    @classmethod
    def from_pem(cls, pem: bytes, *, source: str) -> PrivateKey:
        """Read an unencrypted PKCS #8 key; raises ValueError for anything else."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(pem, password=None)
        except (TypeError, UnsupportedAlgorithm) as error:  # The former: it is encrypted.
            raise ValueError(str(error)) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("it is a key of another algorithm")  # noqa: TRY004 - content of a file, not a type
        return cls(key, source=source)

    def to_pem(self) -> bytes:
        """Return the key as unencrypted PKCS #8."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, message: bytes) -> bytes:
        """Return the 64 bytes of the signature over `message`."""
        return self._key.sign(message)
