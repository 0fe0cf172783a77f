"""A home's key ring: it follows its files while processes run, and its keys are replaced step by step.

A rotation never makes a moment at which a record cannot be verified: the new key is put where every process
finds it before anything is signed with it, and a process that meets a key it does not know looks at the files
before it judges.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from esper.core import _ring_files as files
from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import Busy, SecretError, UsageError
from esper.core.files import write_atomically
from esper.core.rng import new_secret
from esper.leyline import SIGNER_TYPES, Envelope, KeyRing, KeySet, PrivateKey, Verdict, fingerprint

__all__ = [
    "LOOK_SECONDS",
    "SIGNER_SOURCES",
    "HomeKeyRing",
    "Rotation",
    "SignerRotation",
    "begin_rotation",
    "begin_signer_rotation",
    "finish_rotation",
    "finish_signer_rotation",
    "keys_lock",
    "make_signers",
]

_logger = logging.getLogger("esper.core.keys")

#: The sources that sign types of `SIGNER_TYPES`, as the topic files name them (a test compares).
SIGNER_SOURCES: Final = ("cli", "tamiyo", "tezzeret", "urza")
#: A process that signs looks this often whether its key was replaced.
LOOK_SECONDS: Final = 0.05
#: A ring that cannot be read is tried again this often.
_RETRY_SECONDS: Final = 1.0
_LOCK_SECONDS: Final = 10.0


class HomeKeyRing(KeyRing):
    """The ring of a home, which notices when its files are replaced. Safe to share between threads.

    An unknown key costs three `stat` calls, and the files are read again only when these say that they were
    replaced: a flood of unknown keys costs little, and no genuine record is judged by an older ring. If the
    files cannot be read then, `verify` raises SecretError rather than judge without them; what the ring knows
    already goes on to verify, and to sign.
    """

    def __init__(self, root: Path, load: Callable[[], KeySet], *, clock: Clock = SYSTEM_CLOCK) -> None:
        """Read the ring of the home at `root` by `load`, which raises SecretError."""
        self._root = root
        self._load = load
        self._clock = clock
        self._reloading = threading.Lock()
        self._stamp = files.ring_stamp(root)  # Taken before the files are read: a later change is never missed.
        super().__init__(load())
        self._look_at = clock.monotonic() + LOOK_SECONDS
        self._failure: SecretError | None = None
        self._retry_at = 0.0
        self.reloads = 0

    def sign(self, envelope: Envelope, *, source: str = "") -> bytes:
        """Sign as `KeyRing.sign` does, at most `LOOK_SECONDS` after a rotation with the new key.

        Raises:
            SecretError: `source` needs a key of its own for this type, and it is not here.
        """
        if self._clock.monotonic() >= self._look_at:
            self._look_at = self._clock.monotonic() + LOOK_SECONDS
            self._follow()
        try:
            return super().sign(envelope, source=source)
        except LookupError as error:
            raise SecretError(
                f"{source or 'an unnamed source'} cannot sign {envelope.type_name.rpartition('.')[2]}",
                cause=f"ESPER_SIGNATURE_SCHEME is ed25519 and {self._root / 'signers'} holds no key of that source",
                next_step=f"Run `esper keys rotate --signer {source}` on this machine and copy its .pub to the others",
            ) from error

    def verify(self, envelope: Envelope, signature: bytes | None) -> Verdict:
        """Check as `KeyRing.verify` does; an unknown key is looked for in the files first.

        Raises:
            SecretError: the key is unknown and the ring's files were changed and cannot be read.
        """
        used = self.keys
        verdict = super().verify(envelope, signature)
        if verdict is not Verdict.UNKNOWN_KEY:
            return verdict
        self._follow()
        if self._failure is not None:
            raise self._failure
        # Another thread may have read the files since: what counts is which keys the verdict came from.
        return verdict if self.keys is used else super().verify(envelope, signature)

    def _follow(self) -> bool:
        """Read the files again if they were replaced; return whether the ring may hold other keys now."""
        stamp = files.ring_stamp(self._root)
        if stamp == self._stamp and not (self._failure and self._clock.monotonic() >= self._retry_at):
            return False
        before = self.reloads
        with self._reloading:
            if self.reloads == before:
                self._reload(files.ring_stamp(self._root))
        return True

    def _reload(self, stamp: files.RingStamp) -> None:
        self.reloads += 1
        try:
            keys = self._load()
        except SecretError as error:
            _logger.error("the ring of home %s cannot be read again: %s", self._root, error)  # noqa: TRY400 - says it all
            self._failure, self._retry_at = error, self._clock.monotonic() + _RETRY_SECONDS
        else:
            if keys.signing_key_id != self.keys.signing_key_id:
                _logger.info("home %s signs with key %s from now on", self._root, keys.signing_key_id.hex())
            self.keys, self._failure = keys, None
        self._stamp = stamp


@contextmanager
def keys_lock(root: Path) -> Iterator[None]:
    """Be the only process that changes the keys of a home; raises Busy."""
    lock = FileLock(root / "keys.lock", timeout=_LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise Busy(
            f"the keys of home {root} are being changed",
            cause=f"another process has held {root / 'keys.lock'} for {_LOCK_SECONDS:.0f} s",
            next_step="Wait until it is done, then run `esper keys list`",
        ) from error
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class Rotation:
    """A new secret, which verifies everywhere already and signs nothing yet."""

    key_id: str
    previous_key_id: str
    #: None where the secret comes by environment: nothing of it is kept in the home.
    secret: bytes | None = field(repr=False)


def begin_rotation(root: Path, current: bytes) -> Rotation:
    """Make a new secret; keep it, and the one that signs now, where every process finds them. Raises OSError."""
    secret = new_secret().encode()
    files.keep_secret(root, current)
    files.keep_secret(root, secret)
    return Rotation(fingerprint(secret), fingerprint(current), secret)


def finish_rotation(root: Path, rotation: Rotation) -> None:
    """Let the new secret sign; the home must be bound to it already. Raises OSError.

    A crash before the end leaves a home that signs with the new secret all the same: it is kept beside the
    older ones and is the one that the home is bound to.
    """
    if rotation.secret is not None:
        write_atomically(root / "key", rotation.secret + b"\n", mode=0o600)
        files.drop_secret(root, rotation.key_id)


@dataclass(frozen=True)
class SignerRotation:
    """A source's new key, which verifies everywhere already and signs nothing yet."""

    key: PrivateKey = field(repr=False)
    #: Key id of the key that signs until now; empty for a source that had none here.
    previous_key_id: str


def begin_signer_rotation(root: Path, source: str, current: PrivateKey | None) -> SignerRotation:
    """Make a key for `source` and put its public half where every process of the home finds it.

    Raises:
        UsageError: that source signs no type that needs a key of its own.
        SecretError: the source's public keys cannot be read.
        OSError: the home cannot be written.
    """
    if source not in SIGNER_SOURCES:
        raise UsageError(
            f"{source!r} needs no key of its own",
            cause=f"only {', '.join(SIGNER_SOURCES)} sign {', '.join(sorted(map(_short, SIGNER_TYPES)))}",
            next_step="`esper keys rotate` without --signer replaces the secret that signs everything else",
        )
    key = PrivateKey.generate(source=source)
    files.keep_public_key(root, key.public)
    return SignerRotation(key, "" if current is None else current.public.key_id.hex())


def finish_signer_rotation(root: Path, rotation: SignerRotation) -> None:
    """Let the source sign with its new key from now on; raises OSError."""
    files.keep_private_key(root, rotation.key)


def make_signers(root: Path) -> list[str]:
    """Give a key to every source that needs one and has none; return their names.

    A source whose public keys are here is left alone: this home may be one that only verifies. Raises OSError.
    """
    made = [source for source in SIGNER_SOURCES if not files.has_public_key(root, source)]
    for source in made:
        finish_signer_rotation(root, begin_signer_rotation(root, source, None))
    return made


def _short(type_name: str) -> str:
    return type_name.rpartition(".")[2]
