"""The key that signs checkpoints of the log: Ed25519 (RFC 8032), so that a verifier need not be able to sign.

```
<home>/log-key       private key, PEM PKCS8, mode 0600; made when the first checkpoint is to be written
<home>/log-key.pub   public key, PEM: what a stranger is given
```
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from filelock import FileLock, Timeout

from esper.core.errors import Busy, SecretError, SettingsError, UsageError
from esper.core.files import write_atomically

PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
_LOCK_SECONDS: Final = 10.0
_HEX_KEY: Final = re.compile(r"[0-9a-fA-F]{64}")


class LogKey:
    """The private key; safe to share between threads."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public_key = _raw(private.public_key())

    def sign(self, domain: bytes, content: bytes) -> bytes:
        """Return the 64-byte signature over the domain word and the length-prefixed content."""
        return self._private.sign(_signed_bytes(domain, content))


def signature_holds(public_key: bytes, *, domain: bytes, content: bytes, signature: bytes) -> bool:
    """Return whether `signature` over `content` was made with the private half of `public_key` (32 bytes)."""
    if len(public_key) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _signed_bytes(domain, content))
    except InvalidSignature:
        return False
    return True


def open_log_key(root: Path) -> LogKey:
    """Return the log key of the home at `root`; make it, and write its public half, where there is none.

    Processes may call this at the same time.

    Raises:
        SecretError: the file is no Ed25519 key, others may read it, or `log-key.pub` is another key's.
        SettingsError: the home cannot be written.
        Busy: another process has held the key's lock for too long.
    """
    path = root / "log-key"
    try:
        with FileLock(root / "log-key.lock", timeout=_LOCK_SECONDS):
            if not path.exists():
                write_atomically(path, _private_pem(Ed25519PrivateKey.generate()), mode=0o600)
            key = LogKey(_read_private(path))
            _settle_public(root, key)
    except Timeout as error:
        raise Busy(
            f"the log key of home {root} is locked",
            cause=f"another process has held {root / 'log-key.lock'} for {_LOCK_SECONDS:.0f} s",
            next_step="Find that process and end it, then try again",
        ) from error
    except OSError as error:
        raise SettingsError(
            f"log key {path} cannot be used",
            cause=error.strerror or str(error),
            next_step="Make the home readable and writable for this user",
        ) from error
    return key


def log_public_key(root: Path) -> bytes | None:
    """Return the public log key that the home at `root` keeps, 32 bytes; None where no checkpoint was ever written.

    Raises:
        UsageError: the file is no Ed25519 public key.
    """
    path = root / "log-key.pub"
    return read_public_key(str(path)) if path.exists() else None


def read_public_key(given: str) -> bytes:
    """Return the 32 bytes of an Ed25519 public key given as 64 hexadecimal digits or as a file of PEM or digits.

    Raises:
        UsageError: it is neither.
    """
    if _HEX_KEY.fullmatch(given):
        return bytes.fromhex(given)
    try:
        content = Path(given).read_bytes()
    except (OSError, ValueError) as error:
        raise _no_public_key(
            given, f"it is neither 64 hexadecimal digits nor a file that can be read: {error}"
        ) from error
    text = content.decode("ascii", errors="replace").strip()
    if _HEX_KEY.fullmatch(text):
        return bytes.fromhex(text)
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_public_key(given, "the file holds no public key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_public_key(given, "the file holds a key of another algorithm")
    return _raw(key)


def _no_public_key(given: str, cause: str) -> UsageError:
    return UsageError(
        f"{given} is no Ed25519 public key", cause=cause, next_step="Give the file log-key.pub of the log's home"
    )


def _signed_bytes(domain: bytes, content: bytes) -> bytes:
    return domain + len(content).to_bytes(4, "big") + content


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def _private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public_pem(key: LogKey) -> bytes:
    public = Ed25519PublicKey.from_public_bytes(key.public_key)
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _read_private(path: Path) -> Ed25519PrivateKey:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise SecretError(
            f"log key {path} is open to other users",
            cause=f"its mode is {mode:04o}",
            next_step=f"Run `chmod 600 {path}`",
        )
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_private_key(path) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_private_key(path)
    return key


def _no_private_key(path: Path) -> SecretError:
    return SecretError(
        f"log key {path} cannot be used",
        cause="it is no Ed25519 private key in PEM",
        next_step="Put the file back from a copy: checkpoints that exist can be continued by no other key",
    )


def _settle_public(root: Path, key: LogKey) -> None:
    """Write the public half beside the private one, or refuse one that does not belong to it."""
    known = log_public_key(root)
    if known is None:
        write_atomically(root / "log-key.pub", _public_pem(key), mode=0o644)
    elif known != key.public_key:
        raise SecretError(
            f"log key {root / 'log-key'} does not belong to {root / 'log-key.pub'}",
            cause=f"the public keys are {key.public_key.hex()} and {known.hex()}",
            next_step="Put the two files back from the same copy",
        )
