"""Where a home's signing secret comes from, and what makes one unusable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from esper.core._ring_files import read_secret
from esper.core.errors import SecretError
from esper.core.files import write_atomically
from esper.core.rng import new_secret
from esper.core.settings import Settings
from esper.leyline import SECRET_BYTES_MIN


def signing_secret(root: Path, settings: Settings) -> bytes:
    """Return the secret as the bytes of its text, so that what a key file holds can also be set by environment.

    Raises:
        SecretError: none is set or kept, it is under 32 bytes, or other users may read the key file.
    """
    if settings.leyline_secret is not None:
        return _long_enough(settings.leyline_secret.get_secret_value(), name="ESPER_LEYLINE_SECRET")
    if not settings.loopback:
        raise SecretError(
            "a Kafka cluster needs a signing secret of its own",
            cause="ESPER_KAFKA_BOOTSTRAP is set, ESPER_LEYLINE_SECRET is not",
            next_step="Set ESPER_LEYLINE_SECRET to the same value on every machine that shares this cluster",
        )
    return _key_file(root / "key")


def previous_secrets(settings: Settings) -> Sequence[bytes]:
    """Return the older secrets, which only verify; raises SecretError for one under 32 bytes."""
    if settings.leyline_previous_secrets is None:
        return ()
    parts = settings.leyline_previous_secrets.get_secret_value().split(",")
    return [_long_enough(part, name="ESPER_LEYLINE_PREVIOUS_SECRETS") for part in parts if part.strip()]


def make_key(root: Path) -> bool:
    """Give the home a key of its own, mode 0600, unless it has one; return whether it was made. Raises OSError."""
    path = root / "key"
    if path.exists():
        return False
    write_atomically(path, f"{new_secret()}\n".encode(), mode=0o600)
    return True


def _key_file(path: Path) -> bytes:
    if not path.exists():
        raise SecretError(
            f"home {path.parent} has no key",
            cause="ESPER_LEYLINE_SECRET is not set and there is no key file",
            next_step="Put the key file back or set ESPER_LEYLINE_SECRET; a new home gets a key from `esper init`",
        )
    return read_secret(path)


def _long_enough(text: str, *, name: str) -> bytes:
    secret = text.strip().encode()
    if len(secret) < SECRET_BYTES_MIN:
        raise SecretError(
            f"{name} cannot be used",
            cause=f"a signing secret needs at least {SECRET_BYTES_MIN} bytes, this one has {len(secret)}",
            next_step="`python -c 'import secrets; print(secrets.token_hex(32))'` prints a good one",
        )
    return secret
