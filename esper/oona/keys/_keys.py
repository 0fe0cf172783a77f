"""What an operator does with keys: list them, replace them, revoke them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import OperationFailed, SecretError, UsageError
from esper.core.home import Home, unwritable
from esper.core.keys import (
    LOOK_SECONDS,
    Rotation,
    SignerRotation,
    begin_signer_rotation,
    finish_signer_rotation,
    keys_lock,
)
from esper.core.settings import Settings
from esper.leyline import (
    HMAC_ALGORITHM,
    KEY_OPERATOR,
    SIGNATURE_HEADER,
    KeyRing,
    PrivateKey,
    Revocations,
    fold_key_event,
    speaks_about_keys,
)
from esper.leyline import messages as ly
from esper.oona._cluster import Cluster
from esper.oona._events import Event
from esper.oona._fabric import Fabric
from esper.oona.keys._follower import OPERATIONS

_ED25519: Final = "ed25519"
#: Before a key is revoked, every publisher of the home had this long to notice that another one signs.
_PICK_UP_SECONDS: Final = 20 * LOOK_SECONDS


@dataclass(frozen=True)
class KeyRow:
    """One key of the ring, as `esper keys list` shows it."""

    key_id: str
    #: hmac-sha256 or ed25519.
    algorithm: str
    #: The only source that may sign with it; empty: every one.
    signer: str
    #: signing, verifying or revoked.
    state: str
    #: When it came, milliseconds since the epoch by the broker; None: before the log tells of keys.
    rotated_ms: int | None = None
    revoked_ms: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class KeyChange:
    """What `rotate` did: the key that signs now, and the one that signed before (empty: none)."""

    key_id: str
    previous_key_id: str
    algorithm: str
    signer: str = ""


@dataclass(frozen=True)
class KeyRevocation:
    """What `revoke` did: from these offsets on the key is believed no more."""

    key_id: str
    #: "topic-partition" -> first offset that is believed no more.
    effective_from: Mapping[str, int]
    #: False: it was revoked before, and nothing was appended.
    new: bool


def list_keys(fabric: Fabric) -> list[KeyRow]:
    """Return every key that this home verifies with, the signing ones first.

    Raises:
        BrokerUnavailable, NotReadyError: `operations` cannot be read.
    """
    rotated, revoked = _history(fabric)
    order = {"signing": 0, "verifying": 1, "revoked": 2}
    rows = [_row(key, fabric.keyring, rotated, revoked) for key in _keys_of(fabric.keyring)]
    return sorted(rows, key=lambda row: (order[row.state], row.algorithm != HMAC_ALGORITHM, row.signer, row.key_id))


def rotate_key(settings: Settings) -> KeyChange:
    """Replace the secret that signs; the present one goes on to verify.

    The new secret verifies in every process of the home before the log tells of it, and the log tells of it,
    signed by the present one, before anything is signed with it. A rotation that ended between these two steps
    is brought to its end instead of beginning another.

    Raises:
        UsageError: the secret comes by environment and is changed there.
        SecretError: the secret is not the home's, or the log knows a newer one that is not here.
        Busy: another process changes the keys.
        OperationFailed: the log does not count the event.
        BrokerUnavailable, NotReadyError: the log cannot be written; the present secret goes on to sign.
    """
    home = Home.open(settings)
    with keys_lock(home.root):
        _check_reachable(settings)
        rotation, vouching = home.begin_rotation(settings)
        with Fabric.open(vouching, member=KEY_OPERATOR) as fabric:
            newest = fabric.keyring.revocations.newest_key_id
            if not _has_authority(fabric) and newest != rotation.key_id:
                rotation = _resumed(home, rotation, newest)
            if newest != rotation.key_id:
                _tell(
                    fabric,
                    ly.KeyRotated(
                        key_id=rotation.key_id,
                        previous_key_id=rotation.previous_key_id,
                        algorithm=ly.KEY_ALGORITHM_HMAC_SHA256,
                    ),
                    key_id=rotation.key_id,
                )
        _check_counted(vouching, lambda known: known.newest_key_id == rotation.key_id, rotation.key_id)
        home.finish_rotation(rotation)
    return KeyChange(rotation.key_id, rotation.previous_key_id, HMAC_ALGORITHM)


def _resumed(home: Home, rotation: Rotation, newest: str) -> Rotation:
    """Return the rotation that brought `newest` into the log and did not come to its end here."""
    begun = home.resume_rotation(rotation, newest)
    if begun is None:
        raise _outdated(newest, rotation.previous_key_id)
    return begun


def _outdated(newest: str, signing: str) -> SecretError:
    return SecretError(
        f"nothing that this home says about keys counts: it signs with {signing}",
        cause=f"the log knows the newer key {newest}, and only the newest speaks about keys",
        next_step="Run `esper keys rotate`: it ends a rotation that was interrupted here. Where the newer key was made "
        "elsewhere, put that home's `key` and `keys/` here",
    )


def _has_authority(fabric: Fabric) -> bool:
    """Return whether the log counts what this process says about keys."""
    keys, newest = fabric.keyring.keys, fabric.keyring.revocations.newest_key_id
    return keys.signers_required or newest in ("", fabric.keyring.signing_key_id)


def _check_counted(settings: Settings, counted: Callable[[Revocations], bool], key_id: str) -> None:
    """Read the log anew and refuse to call done what it does not count."""
    with Fabric.open(settings, member=KEY_OPERATOR) as fabric:
        if not counted(fabric.keyring.revocations):
            raise OperationFailed(
                f"what was said about key {key_id} does not count",
                cause="another process spoke about keys meanwhile, or this one may not",
                next_step="`esper keys list` shows what counts; then try again",
            )


def rotate_signer(settings: Settings, source: str) -> KeyChange:
    """Give `source` a new Ed25519 key; its older ones go on to verify.

    Raises:
        UsageError: signers are not asked for by the settings, or that source needs none.
        SecretError: the operator has no key here to sign the event with; give it one first.
        SettingsError: the home cannot be written.
        Busy, BrokerUnavailable, NotReadyError: as `rotate_key`.
    """
    if settings.signature_scheme != _ED25519:
        raise UsageError(
            f"{source} signs with the secret that everybody signs with",
            cause="ESPER_SIGNATURE_SCHEME is hmac",
            next_step="Set ESPER_SIGNATURE_SCHEME=ed25519 on every machine, then run this again",
        )
    home = Home.open(settings)
    with keys_lock(home.root):
        _check_reachable(settings)
        privates = home.keyring(settings).keys.private_keys
        _check_operator(privates, source)
        try:
            rotation = begin_signer_rotation(home.root, source, privates.get(source))
            if KEY_OPERATOR not in privates:
                finish_signer_rotation(home.root, rotation)  # Nobody else can sign the event that tells of it.
            _tell_of_signer(settings, rotation)
            finish_signer_rotation(home.root, rotation)
        except OSError as error:
            raise unwritable(home.root, error) from error
    return KeyChange(rotation.key.public.key_id.hex(), rotation.previous_key_id, _ED25519, source)


def revoke_key(settings: Settings, key_id: str, *, reason: str = "", clock: Clock = SYSTEM_CLOCK) -> KeyRevocation:
    """Let nothing that `key_id` signs from the present ends of all partitions on be believed.

    What stands before them stays. `hmac-sha256` stands for every MAC over a type that needs a signer of its own:
    it says where, in a log that is older than ESPER_SIGNATURE_SCHEME=ed25519, the signers begin.

    Raises:
        UsageError: there is no such key, or it signs at present.
        SecretError: the log knows a newer key than the one that signs here.
        OperationFailed: the log does not count the event.
        BrokerUnavailable, NotReadyError: the log cannot be read or written.
    """
    home = Home.open(settings)
    with keys_lock(home.root), Fabric.open(settings, member=KEY_OPERATOR) as fabric:
        known = fabric.keyring.revocations.boundaries.get(key_id)
        if known is not None:
            return KeyRevocation(key_id, _named(known), new=False)
        if not _has_authority(fabric):
            raise _outdated(fabric.keyring.revocations.newest_key_id, fabric.keyring.signing_key_id)
        _check_revocable(fabric, key_id)
        _wait_for_pick_up(home, clock)
        places = [place for spec in fabric.topics for place in fabric.topics.partitions(spec.name)]
        ends = {place: high for place, (_, high) in fabric.cluster.as_principal("admin").watermarks(places).items()}
        effective = [ly.PartitionOffset(topic=t, partition=p, offset=end) for (t, p), end in sorted(ends.items())]
        _tell(fabric, ly.KeyRevoked(key_id=key_id, effective_from=effective, reason=reason), key_id=key_id)
        _check_counted(settings, lambda known: key_id in known.boundaries, key_id)
    return KeyRevocation(key_id, _named(ends), new=True)


def _check_operator(privates: Mapping[str, PrivateKey], source: str) -> None:
    if KEY_OPERATOR not in privates and source != KEY_OPERATOR:
        raise SecretError(
            f"nobody here can say that {source} has a new key",
            cause=f"events about keys are signed by {KEY_OPERATOR}, whose own key is not on this machine",
            next_step=f"Run `esper keys rotate --signer {KEY_OPERATOR}` first, or run this where that key is",
        )


def _check_reachable(settings: Settings) -> None:
    """Refuse before anything is changed when the log cannot be reached."""
    Cluster.open(settings)


def _tell(fabric: Fabric, event: ly.KeyRotated | ly.KeyRevoked, *, key_id: str) -> None:
    with fabric.publisher(KEY_OPERATOR) as publisher:
        publisher.publish(event, key=key_id)


def _tell_of_signer(settings: Settings, rotation: SignerRotation) -> None:
    public = rotation.key.public
    with Fabric.open(settings, member=KEY_OPERATOR) as fabric:
        event = ly.KeyRotated(
            key_id=public.key_id.hex(),
            previous_key_id=rotation.previous_key_id,
            algorithm=ly.KEY_ALGORITHM_ED25519,
            public_key=public.raw,
            signer=public.source,
        )
        _tell(fabric, event, key_id=public.key_id.hex())


def _check_revocable(fabric: Fabric, key_id: str) -> None:
    rows = {key.key_id: key for key in _keys_of(fabric.keyring)}
    if key_id == HMAC_ALGORITHM:
        if not fabric.keyring.keys.signers_required:
            raise UsageError(
                f"{HMAC_ALGORITHM} cannot be revoked",
                cause="ESPER_SIGNATURE_SCHEME is hmac: everything is signed so",
                next_step="Set ESPER_SIGNATURE_SCHEME=ed25519 on every machine first",
            )
    elif key_id not in rows:
        raise UsageError(
            f"there is no key {key_id!r} in this ring",
            cause=f"it holds {', '.join(sorted(rows))}",
            next_step="`esper keys list` shows each with its state",
        )
    elif rows[key_id].signing:
        signer = rows[key_id].signer
        raise UsageError(
            f"key {key_id} signs at present",
            cause="once revoked, nothing that is written from now on would be believed",
            next_step=f"Run `esper keys rotate{f' --signer {signer}' if signer else ''}` first",
        )


def _wait_for_pick_up(home: Home, clock: Clock) -> None:
    """Give running publishers the time to notice the last rotation: what they sign with is about to end."""
    changed_ns = max((path.stat().st_mtime_ns for path in _rotated_files(home)), default=0)
    left = _PICK_UP_SECONDS - (clock.now_ns() - changed_ns) / 1e9
    if left > 0:
        clock.sleep(min(left, _PICK_UP_SECONDS))


def _rotated_files(home: Home) -> Iterator[Path]:
    return (path for path in (home.root / "key", home.root / "signers") if path.exists())


@dataclass(frozen=True)
class _Key:
    key_id: str
    algorithm: str
    signer: str
    signing: bool


def _keys_of(keyring: KeyRing) -> list[_Key]:
    keys = keyring.keys
    secrets = [_Key(one.hex(), HMAC_ALGORITHM, "", one == keys.signing_key_id) for one in keys.macs]
    current = {key.public.key_id for key in keys.private_keys.values()}
    signers = [_Key(one.hex(), _ED25519, key.source, one in current) for one, key in keys.public_keys.items()]
    return secrets + signers


def _history(fabric: Fabric) -> tuple[dict[str, Event], dict[str, Event]]:
    """Return the events that brought and that ended each key; of several that count, the first."""
    rotated: dict[str, Event] = {}
    revoked: dict[str, Event] = {}
    state = Revocations()
    with fabric.reader({OPERATIONS: "begin"}) as reader:
        for event in reader.read_to_end():
            message, signature = event.message, event.record.header(SIGNATURE_HEADER) or b""
            if not speaks_about_keys(message, meta=event.meta, state=state, signature=signature):
                continue  # Whoever holds an older key may write here, but not about keys.
            state = fold_key_event(state, event.meta, message, signature=signature)
            told = rotated if isinstance(message, ly.KeyRotated) else revoked
            told.setdefault(message.key_id, event)
    return rotated, revoked


def _row(key: _Key, keyring: KeyRing, rotated: Mapping[str, Event], revoked: Mapping[str, Event]) -> KeyRow:
    came, ended = rotated.get(key.key_id), revoked.get(key.key_id)
    is_revoked = key.key_id in keyring.revocations.boundaries
    state = "revoked" if is_revoked else "signing" if key.signing else "verifying"
    told = ended.message if is_revoked and ended is not None else None
    return KeyRow(
        key_id=key.key_id,
        algorithm=key.algorithm,
        signer=key.signer,
        state=state,
        rotated_ms=None if came is None else came.record.append_time_ms,
        revoked_ms=None if ended is None or told is None else ended.record.append_time_ms,
        reason=told.reason if isinstance(told, ly.KeyRevoked) else "",
    )


def _named(places: Mapping[tuple[str, int], int]) -> dict[str, int]:
    return {f"{topic}-{partition}": offset for (topic, partition), offset in sorted(places.items())}
