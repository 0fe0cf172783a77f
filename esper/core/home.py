"""The home: one folder that holds everything local of one Esper system.

```
<root>/home.json     format, home id, fingerprint of the signing secret, port and mode of the local broker
<root>/key           the home's own signing secret, mode 0600
<root>/keys/         older secrets, which only verify
<root>/signers/      keys of sources, where ESPER_SIGNATURE_SCHEME asks for them
<root>/broker/       data and configuration of the local Kafka broker
<root>/blobs/  projections/  members/  logs/
```

Two homes are two independent systems that run side by side. The fingerprint pins the secret: a home
started with another one refuses, because every record it wrote would look forged.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from esper.core._ring_files import drop_secret, older_secrets, private_keys, public_keys
from esper.core._secret import make_key, previous_secrets, signing_secret
from esper.core._stamps import ProcessStamp, read_stamp, write_stamp
from esper.core.errors import Busy, NotReadyError, SecretError, SettingsError, UsageError
from esper.core.files import write_atomically
from esper.core.ids import new_event_id
from esper.core.keys import HomeKeyRing, Rotation, begin_rotation, finish_rotation, make_signers
from esper.core.settings import Settings
from esper.leyline import KeyRing, KeySet, fingerprint

__all__ = [
    "Home",
    "MemberInfo",
    "ProcessStamp",
    "live_members",
    "member_lock",
    "read_stamp",
    "unwritable",
    "write_stamp",
]

_logger = logging.getLogger("esper.core.home")

#: Changing home.json takes milliseconds; whoever waits longer waits for a process that hangs.
_LOCK_SECONDS = 10.0

_MEMBER_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")

_FOLDERS = ("blobs", "projections", "members", "logs", "broker")


class _HomeFile(BaseModel):
    """What home.json holds; unknown fields are refused, so that an older Esper never drops a newer one's."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    home_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    key_fingerprint: str | None = None
    broker_port: int | None = Field(default=None, ge=1, le=65535)
    broker_secure: bool = False


@dataclass(frozen=True)
class MemberInfo:
    """A member that lives: its name (`<subsystem>-<n>`), its process, and how far it is.

    "starting" until it says that it does its work, "suspended" while a signal holds it.
    """

    name: str
    pid: int
    state: Literal["starting", "running", "suspended"]


class Home:
    """An opened home; paths are absolute, and home.json is read anew at each question because processes share it."""

    def __init__(self, root: Path, home_id: str) -> None:
        self.root = root
        self.home_id = home_id

    @classmethod
    def open(cls, settings: Settings) -> Home:
        """Open the home that `settings` names.

        Raises:
            NotReadyError: there is no home at that path.
            SettingsError: home.json cannot be read or is not a home file.
        """
        root = _root(settings)
        return cls(root, _read_home_file(root).home_id)

    @classmethod
    def create(cls, settings: Settings) -> Home:
        """Make the home that `settings` names, or complete and open the one that is there.

        On loopback without a secret of the user's the home gets a key of its own. A key or fingerprint that
        exists is never replaced. Processes may call this at the same time.

        Raises:
            SettingsError: the path cannot be written, or home.json is not a home file.
            SecretError: the secret given is too short.
            Busy: another process has been changing this home for too long.
        """
        root = _root(settings)
        try:
            for folder in _FOLDERS:
                (root / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(root, error) from error
        with _home_lock(root):
            exists = (root / "home.json").exists()
            known = _read_home_file(root) if exists else _HomeFile(home_id=new_event_id())
            pinned = known.key_fingerprint or _first_fingerprint(root, settings)
            completed = known.model_copy(update={"key_fingerprint": pinned})
            if completed != known or not exists:
                _write_home_file(root, completed)
            if settings.loopback and settings.signature_scheme == "ed25519":
                _make_signers(root)
        return cls(root, completed.home_id)

    @property
    def blobs(self) -> Path:
        """Content-addressed blobs."""
        return self.root / "blobs"

    @property
    def projections(self) -> Path:
        """Projection database files."""
        return self.root / "projections"

    @property
    def members(self) -> Path:
        """Lock and process files of the members."""
        return self.root / "members"

    @property
    def logs(self) -> Path:
        """Log files of the broker and the members."""
        return self.root / "logs"

    @property
    def broker(self) -> Path:
        """Data and configuration of the local broker."""
        return self.root / "broker"

    @property
    def key_fingerprint(self) -> str | None:
        """Fingerprint of the secret that this home is bound to; None until one was used."""
        return _read_home_file(self.root).key_fingerprint

    @property
    def broker_port(self) -> int | None:
        """Port that the local broker used last; None before its first start."""
        return _read_home_file(self.root).broker_port

    def remember_broker_port(self, port: int) -> None:
        """Keep `port` for the next start of the local broker; raises SettingsError, Busy."""
        with _home_lock(self.root):
            known = _read_home_file(self.root)
            if known.broker_port != port:
                _write_home_file(self.root, known.model_copy(update={"broker_port": port}))

    @property
    def broker_secure(self) -> bool:
        """Whether the local broker asks for a login and lets each principal do only what is granted to it."""
        return _read_home_file(self.root).broker_secure

    def remember_broker_secure(self, secure: bool) -> None:
        """Keep the broker's mode for its next start and for every client; raises SettingsError, Busy."""
        with _home_lock(self.root):
            known = _read_home_file(self.root)
            if known.broker_secure != secure:
                _write_home_file(self.root, known.model_copy(update={"broker_secure": secure}))

    def keyring(self, settings: Settings) -> KeyRing:
        """Return the ring that signs and verifies for this home.

        The secret is `ESPER_LEYLINE_SECRET`, or the home's own key file on loopback; older secrets only verify.
        A home that was bound to none yet is bound to this one. The ring follows its files.

        Raises:
            SecretError: no secret, one under 32 bytes, a key file that others may read, or not this home's secret.
        """
        return HomeKeyRing(self.root, lambda: self._keys(settings))

    def begin_rotation(self, settings: Settings) -> tuple[Rotation, Settings]:
        """Prepare another signing secret; return it, and the settings under which the present one still signs.

        A secret that comes by environment is replaced there: this only makes sure that whoever brings a new one
        holds the old one too.

        Raises:
            UsageError: the secret comes by environment, and there is no new one.
            SecretError: as `keyring`.
            SettingsError: the home cannot be written.
        """
        try:
            if settings.loopback and settings.leyline_secret is None:
                return begin_rotation(self.root, self._signing_secret(settings)), settings
        except OSError as error:
            raise unwritable(self.root, error) from error
        return self._rotation_by_environment(settings)

    def check_secret(self, settings: Settings) -> None:
        """Refuse a secret of the environment that is not this home's; nothing is read or written besides.

        Raises:
            SecretError: it is another one, and the home's own is not among the previous ones.
        """
        bound = self.key_fingerprint
        if settings.leyline_secret is None or bound is None:
            return
        found = fingerprint(signing_secret(self.root, settings))
        if bound != found and bound not in {fingerprint(secret) for secret in previous_secrets(settings)}:
            raise _foreign_secret(self.root, found=found, bound=bound)

    def resume_rotation(self, rotation: Rotation, newest_key_id: str) -> Rotation | None:
        """Return the rotation that an earlier process began and the log tells of, in place of one begun just now.

        None where the secret of `newest_key_id` is not kept here: then this home is not the one that made it.

        Raises:
            SecretError: a kept secret cannot be used.
            SettingsError: the home cannot be written.
        """
        secret = older_secrets(self.root).get(newest_key_id)
        if secret is None or rotation.secret is None:
            return None
        try:
            drop_secret(self.root, rotation.key_id)
        except OSError as error:
            raise unwritable(self.root, error) from error
        return Rotation(newest_key_id, rotation.previous_key_id, secret)

    def finish_rotation(self, rotation: Rotation) -> None:
        """Sign with the new secret from now on, and be bound to it; raises SettingsError, Busy."""
        with _home_lock(self.root):
            known = _read_home_file(self.root)
            _write_home_file(self.root, known.model_copy(update={"key_fingerprint": rotation.key_id}))
            finish_rotation(self.root, rotation)

    def _rotation_by_environment(self, settings: Settings) -> tuple[Rotation, Settings]:
        signing = signing_secret(self.root, settings)
        bound, found = self.key_fingerprint, fingerprint(signing)
        older = {fingerprint(secret): secret for secret in previous_secrets(settings)}
        if bound is None or bound == found:
            raise UsageError(
                f"the secret of home {self.root} comes by environment and is changed there",
                cause=f"ESPER_LEYLINE_SECRET holds the key {found} that signs now",
                next_step="Add a new secret to ESPER_LEYLINE_PREVIOUS_SECRETS of every process and restart them; then "
                "make it ESPER_LEYLINE_SECRET, put the present one into ESPER_LEYLINE_PREVIOUS_SECRETS, and run "
                "`esper keys rotate` on each machine before you restart its members",
            )
        if bound not in older:
            raise _foreign_secret(self.root, found=found, bound=bound)
        swapped = {
            "leyline_secret": SecretStr(older[bound].decode()),
            "leyline_previous_secrets": SecretStr(signing.decode()),
        }
        return Rotation(found, bound, None), settings.model_copy(update=swapped)

    def _keys(self, settings: Settings) -> KeySet:
        """Read the ring's files and the secrets of the environment; raises SecretError."""
        signing = self._signing_secret(settings)
        required = settings.signature_scheme == "ed25519"
        return KeySet.of(
            signing,
            [*older_secrets(self.root).values(), *previous_secrets(settings)],
            public_keys=public_keys(self.root),
            private_keys=private_keys(self.root) if required else (),
            signers_required=required,
        )

    def _signing_secret(self, settings: Settings) -> bytes:
        """Return the secret that this home is bound to; bind it to the one given if it is bound to none."""
        secret = signing_secret(self.root, settings)
        found = fingerprint(secret)
        bound = self.key_fingerprint or self._pin(found)
        if found == bound:
            return secret
        # The key file and the binding are two files; under the lock that their change holds, they belong together.
        with _home_lock(self.root):
            secret, bound = signing_secret(self.root, settings), _read_home_file(self.root).key_fingerprint or ""
            found, older = fingerprint(secret), older_secrets(self.root)
        if found == bound:
            return secret
        if settings.leyline_secret is None and found in older and bound in older:
            return older[bound]  # A rotation ended between its last two steps.
        raise _foreign_secret(self.root, found=found, bound=bound)

    def _pin(self, found: str) -> str:
        """Bind the home to the fingerprint `found` unless another process was first; return the one that holds."""
        with _home_lock(self.root):
            known = _read_home_file(self.root)
            if known.key_fingerprint is not None:
                return known.key_fingerprint
            _write_home_file(self.root, known.model_copy(update={"key_fingerprint": found}))
        return found


@contextmanager
def member_lock(home: Home, name: str) -> Iterator[None]:
    """Be the only process that is member `name` of this home, for the time of the `with` block.

    The operating system frees the lock when the process dies, however it dies. Beside the lock lies
    `members/<name>.json` with pid, process start time and home, so that others can see who is there;
    `mark_ready` tells them that the member does its work.

    Raises:
        Busy: another live process is that member.
        SettingsError: the name cannot be a file name, or the home cannot be written.
    """
    if not _MEMBER_NAME.fullmatch(name):
        raise SettingsError(
            f"member name {name!r} cannot be used",
            cause="a name is lower-case letters, digits, '.', '_' and '-'",
            next_step="Names look like tolaria-1",
        )
    stamp_path = home.members / f"{name}.json"
    # Not bound to a thread: a service may leave its block in another thread than the one that entered.
    lock = FileLock(home.members / f"{name}.lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
        _ready_path(home, name).unlink(missing_ok=True)
        write_stamp(stamp_path, ProcessStamp.of(os.getpid(), home.root))
    except Timeout as error:
        raise Busy(
            f"member {name} of home {home.root} runs already",
            cause=_holder_of(stamp_path),
            next_step="`esper status` lists the members; stop that one or start another number",
        ) from error
    except OSError as error:
        lock.release()
        raise unwritable(home.root, error) from error
    try:
        yield
    finally:
        stamp_path.unlink(missing_ok=True)
        _ready_path(home, name).unlink(missing_ok=True)
        lock.release()


def mark_ready(home: Home, name: str) -> None:
    """Say that this process, which holds the lock of member `name`, does its work from now on.

    Does nothing in a process that is not that member.
    """
    stamp = read_stamp(home.members / f"{name}.json")
    if stamp is not None and stamp.pid == os.getpid():
        write_stamp(_ready_path(home, name), stamp)


def _ready_path(home: Home, name: str) -> Path:
    return home.members / f"{name}.ready"


def live_members(home: Home) -> list[MemberInfo]:
    """Return the members whose process runs, by name; files left by dead processes are passed over."""
    members = []
    for path in sorted(home.members.glob("*.json")):
        stamp = read_stamp(path)
        process = stamp.process(home.root) if stamp else None
        if process is not None:
            ready = read_stamp(_ready_path(home, path.stem)) == stamp
            members.append(MemberInfo(name=path.stem, pid=process.pid, state=_state_of(process, ready=ready)))
    return members


def _foreign_secret(root: Path, *, found: str, bound: str) -> SecretError:
    return SecretError(
        f"the signing secret is not the one of home {root}",
        cause=f"its fingerprint is {found}, the home was made with {bound}",
        next_step="Set ESPER_LEYLINE_SECRET to the home's secret, or ESPER_HOME to another home",
    )


def unwritable(root: Path, error: OSError) -> SettingsError:
    """Return the error to raise when something in the home `root` could not be written."""
    return SettingsError(
        f"home {root} cannot be written",
        cause=f"{error.strerror or error} ({error.filename or root})",
        next_step="Set ESPER_HOME to a folder that you may write",
    )


def _root(settings: Settings) -> Path:
    """Return the one name that a home has, whatever links lead to it: processes recognise each other by it."""
    try:
        return settings.home.expanduser().resolve()
    except (OSError, RuntimeError) as error:  # A loop of links, or `~` of a user that does not exist.
        raise SettingsError(
            f"home {settings.home} cannot be used",
            cause=str(error),
            next_step="Set ESPER_HOME to a folder that you may write",
        ) from error


def _state_of(process: psutil.Process, *, ready: bool) -> Literal["starting", "running", "suspended"]:
    with suppress(psutil.NoSuchProcess):  # It ended between the two questions; the next list leaves it out.
        if process.status() == psutil.STATUS_STOPPED:
            return "suspended"
    return "running" if ready else "starting"


def _holder_of(stamp_path: Path) -> str:
    stamp = read_stamp(stamp_path)
    return f"process {stamp.pid} holds its lock" if stamp else "another process holds its lock"


def _first_fingerprint(root: Path, settings: Settings) -> str | None:
    """Return the fingerprint to bind a home to, making its key where it needs one; None: decided at first use."""
    if settings.leyline_secret is None:
        if not settings.loopback:
            return None
        if make_key(root):
            _logger.info("made the signing key of home %s", root)
    return fingerprint(signing_secret(root, settings))


def _make_signers(root: Path) -> None:
    try:
        made = make_signers(root)
    except OSError as error:
        raise unwritable(root, error) from error
    if made:
        _logger.info("made keys of their own for %s in home %s", ", ".join(made), root)


@contextmanager
def _home_lock(root: Path) -> Iterator[None]:
    """Hold the lock under which home.json changes; raises Busy, and SettingsError for a home that cannot be written."""
    try:
        with FileLock(root / "home.lock", timeout=_LOCK_SECONDS):
            yield
    except Timeout as error:
        raise Busy(
            f"home {root} is locked",
            cause=f"another process has held {root / 'home.lock'} for {_LOCK_SECONDS:.0f} s",
            next_step="Find that process and end it, then try again",
        ) from error
    except OSError as error:
        raise unwritable(root, error) from error


def _read_home_file(root: Path) -> _HomeFile:
    path = root / "home.json"
    try:
        return _HomeFile.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotReadyError(
            f"there is no Esper home at {root}",
            next_step="Run `esper init`, or set ESPER_HOME to the home that you have",
        ) from error
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be read",
            cause=error.strerror or str(error),
            next_step="Set ESPER_HOME to a folder that you may read and write",
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(
            f"{path} is not a home file that this Esper reads",
            cause=f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}",
            next_step="Put the file back from a copy, or set ESPER_HOME to another home",
        ) from error


def _write_home_file(root: Path, content: _HomeFile) -> None:
    write_atomically(root / "home.json", f"{content.model_dump_json(indent=2)}\n".encode(), mode=0o644)
