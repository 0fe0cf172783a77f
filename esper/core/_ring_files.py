"""The files of a key ring: the home's secrets, the keys of its sources, and what makes a file unusable.

```
<root>/key                   the secret that signs, mode 0600
<root>/keys/<fingerprint>    older secrets, which only verify, mode 0600
<root>/signers/<source>.key  the Ed25519 key that a source signs with, PKCS #8 in PEM, mode 0600
<root>/signers/<source>.pub  every public key that the source ever had, 64 hexadecimal digits a line
```

A file is only ever replaced as a whole, by a rename, and that is how a running process notices a change.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from esper.core.errors import SecretError
from esper.core.files import write_atomically
from esper.leyline import SECRET_BYTES_MIN, PrivateKey, PublicKey, fingerprint

#: A key file is some hundred bytes; whoever puts a large one there does not get it read.
_FILE_BYTES_MAX: Final = 64 * 1024
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{16}")
_SOURCE: Final = re.compile(r"[a-z][a-z0-9-]{0,63}")
#: How often a file is looked for that comes and goes; a link that leads nowhere is there and cannot be read.
_TRIES: Final = 10
_OPEN_TO_READERS: Final = 0o077
_OPEN_TO_WRITERS: Final = 0o022

#: What `stat` says of each place that a ring is read from; equal stamps mean that nothing was replaced.
RingStamp = tuple[tuple[int, int, int, int] | None, ...]


def ring_stamp(root: Path) -> RingStamp:
    """Return the present stamp of a home's ring; costs three `stat` calls and opens nothing."""
    return tuple(_stamp(f"{root}/{name}") for name in ("key", "keys", "signers"))


def _stamp(path: str) -> tuple[int, int, int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - a third of the cost of a Path, and unknown keys may come by the million
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)


def older_secrets(root: Path) -> dict[str, bytes]:
    """Return the secrets under keys/ by fingerprint; files of other names are passed over.

    Raises:
        SecretError: one cannot be read, is open to others, or is not the secret that its name says.
    """
    found = {}
    for path in _files(root / "keys"):
        if _FINGERPRINT.fullmatch(path.name):
            secret = _secret_still_there(path)
            if secret is None:
                continue  # A rotation came to its end: the secret that signs now is kept in `key` alone.
            if fingerprint(secret) != path.name:
                raise _damaged(path, f"it holds the secret {fingerprint(secret)}")
            found[path.name] = secret
    return found


def _secret_still_there(path: Path) -> bytes | None:
    """Return the secret in a file, None where it is gone.

    The next rotation may bring a file back that the last one has just taken away: it is looked for again.
    """
    tries_left = _TRIES
    while True:
        tries_left -= 1
        try:
            return read_secret(path)
        except SecretError as error:
            gone = isinstance(error.__cause__, FileNotFoundError)
            if gone and not os.path.lexists(path):
                return None
            if not gone or not tries_left:
                raise


def read_secret(path: Path) -> bytes:
    """Return the secret in a file; raises SecretError."""
    content = _read(path, forbidden_mode=_OPEN_TO_READERS, private=True)
    secret = content.strip()
    try:
        secret.decode()
    except UnicodeDecodeError as error:
        raise SecretError(f"key {path} cannot be read", cause=str(error), next_step="Put the key file back") from error
    if len(secret) < SECRET_BYTES_MIN:
        raise SecretError(
            f"the key in {path} cannot be used",
            cause=f"a signing secret needs at least {SECRET_BYTES_MIN} bytes, this one has {len(secret)}",
            next_step="Put the key file back from a copy",
        )
    return secret


def keep_secret(root: Path, secret: bytes) -> None:
    """Keep `secret` under keys/, where it verifies; raises OSError."""
    path = _folder(root / "keys") / fingerprint(secret)
    write_atomically(path, secret + b"\n", mode=0o600)


def drop_secret(root: Path, key_id: str) -> None:
    """Remove a secret from keys/; raises OSError."""
    (root / "keys" / key_id).unlink(missing_ok=True)


def public_keys(root: Path) -> list[PublicKey]:
    """Return every public key under signers/, by source, the oldest first.

    Raises:
        SecretError: a file cannot be read or is writable by others, a line is no key, or two sources share one.
    """
    found: dict[bytes, PublicKey] = {}
    for path in _files(root / "signers"):
        if path.suffix == ".pub" and _SOURCE.fullmatch(path.stem):
            for key in _public_keys_in(path):
                other = found.setdefault(key.key_id, key)
                if other.source != key.source:
                    raise _damaged(path, f"its key {key.key_id.hex()} is {other.source}'s too")
    return list(found.values())


def private_keys(root: Path) -> list[PrivateKey]:
    """Return every private key under signers/.

    Raises:
        SecretError: a file cannot be read, is open to others, is no Ed25519 key, or its public key is not kept.
    """
    known = {key.key_id for key in public_keys(root)}
    found = []
    for path in _files(root / "signers"):
        if path.suffix == ".key" and _SOURCE.fullmatch(path.stem):
            key = _private_key_in(path)
            if key.public.key_id not in known:
                raise _damaged(path, f"its public key {key.public.raw.hex()} is not in {path.with_suffix('.pub')}")
            found.append(key)
    return found


def keep_public_key(root: Path, key: PublicKey) -> None:
    """Add a public key to its source's file, where it verifies; raises OSError and SecretError."""
    path = _folder(root / "signers") / f"{key.source}.pub"
    kept = _public_keys_in(path) if path.exists() else []
    lines = [f"{one.raw.hex()}\n" for one in [*kept, key]]
    write_atomically(path, "".join(lines).encode(), mode=0o644)


def keep_private_key(root: Path, key: PrivateKey) -> None:
    """Make `key` the one that its source signs with; raises OSError."""
    path = _folder(root / "signers") / f"{key.public.source}.key"
    write_atomically(path, key.to_pem(), mode=0o600)


def has_public_key(root: Path, source: str) -> bool:
    """Return whether a source has a file of public keys."""
    return (root / "signers" / f"{source}.pub").exists()


def _public_keys_in(path: Path) -> list[PublicKey]:
    content = _read(path, forbidden_mode=_OPEN_TO_WRITERS, private=False)
    keys = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        text = line.strip()
        if text and not text.startswith(b"#"):
            try:
                keys.append(PublicKey(bytes.fromhex(text.decode("ascii")), source=path.stem))
            except ValueError as error:
                raise _damaged(path, f"line {number}: {error}") from error
    return keys


def _private_key_in(path: Path) -> PrivateKey:
    content = _read(path, forbidden_mode=_OPEN_TO_READERS, private=True)
    try:
        return PrivateKey.from_pem(content, source=path.stem)
    except ValueError as error:
        raise _damaged(path, "it is no unencrypted Ed25519 key in PEM") from error


def _read(path: Path, *, forbidden_mode: int, private: bool) -> bytes:
    """Return the content of a key file that nobody else may read or write."""
    try:
        # Not to wait for a writer where somebody put a pipe.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno()).st_mode
            mode = stat.S_IMODE(found)
            content = file.read(_FILE_BYTES_MAX + 1) if stat.S_ISREG(found) else b""
    except OSError as error:
        raise SecretError(f"key {path} cannot be read", cause=str(error), next_step="Put the key file back") from error
    if mode & forbidden_mode:
        raise SecretError(
            f"key {path} is open to other users",
            cause=f"its mode is {mode:04o}",
            next_step=f"Run `chmod {'600' if private else '644'} {path}`",
        )
    if len(content) > _FILE_BYTES_MAX:
        raise _damaged(path, f"it is larger than {_FILE_BYTES_MAX} bytes")
    return content


def _files(folder: Path) -> Iterator[Path]:
    """Yield what lies in a folder, by name; nothing where there is none."""
    try:
        yield from sorted(folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise SecretError(
            f"{folder} cannot be read", cause=str(error), next_step="Make it a folder that only you may read"
        ) from error


def _folder(path: Path) -> Path:
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _damaged(path: Path, cause: str) -> SecretError:
    return SecretError(f"key file {path} cannot be used", cause=cause, next_step="Put the file back from a copy")
