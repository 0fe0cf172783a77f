"""A home's ring: it follows its files, survives a crash at any step, and refuses what is damaged."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esper.core import _ring_files, keys
from esper.core.clock import ManualClock
from esper.core.errors import Busy, SecretError, SettingsError, UsageError
from esper.core.home import Home
from esper.core.keys import LOOK_SECONDS, SIGNER_SOURCES, HomeKeyRing, keys_lock, make_signers
from esper.core.settings import Settings, load_settings
from esper.leyline import SIGNER_SIGNATURE_BYTES, Envelope, KeyRing, KeySet, PrivateKey, Verdict, fingerprint

ENVELOPE = Envelope(topic="runs", partition=0, key="run-1", type_name="T", value=b"value")
COMMAND = Envelope("adaptation-commands", 0, "run-1", "esper.leyline.v1.AdaptationCommand", b"value")
NEW, OLD = "a new secret of thirty-two bytes and more", "an old secret of thirty-two bytes and more"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a new loopback home."""
    return load_settings(_env_file=None, home=tmp_path / "home")


@pytest.fixture
def home(settings: Settings) -> Home:
    """That home."""
    return Home.create(settings)


@pytest.fixture
def guarded(settings: Settings) -> Settings:
    """Settings of the same home with signers of their own."""
    changed = settings.model_copy(update={"signature_scheme": "ed25519"})
    Home.create(changed)
    return changed


def rotate(home: Home, settings: Settings) -> str:
    rotation, _ = home.begin_rotation(settings)
    home.finish_rotation(rotation)
    return rotation.key_id


def test_a_running_ring_follows_a_rotation(home: Home, settings: Settings) -> None:
    """Goal: no restart. Method: two rings of one home; rotate; one signs with the new key, one believes it."""
    signer, verifier = home.keyring(settings), home.keyring(settings)
    old = signer.sign(ENVELOPE)
    new_id = rotate(home, settings)
    assert isinstance(signer, HomeKeyRing)
    signer._look_at = 0.0
    new = signer.sign(ENVELOPE)
    assert new[:8].hex() == new_id != old[:8].hex()
    assert verifier.verify(ENVELOPE, new) is Verdict.GOOD
    assert verifier.verify(ENVELOPE, old) is Verdict.GOOD
    assert home.key_fingerprint == new_id
    kept = home.root / "keys" / old[:8].hex()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


def test_a_ring_signs_with_the_new_key_after_its_next_look(home: Home, settings: Settings) -> None:
    """Goal: signing costs no system call. Method: a clock by hand, a rotation, and signing before and after a look."""
    clock = ManualClock()
    ring = HomeKeyRing(home.root, lambda: home._keys(settings), clock=clock)
    old_id = ring.signing_key_id
    new_id = rotate(home, settings)
    assert ring.sign(ENVELOPE)[:8].hex() == old_id
    clock.advance(LOOK_SECONDS)
    assert ring.sign(ENVELOPE)[:8].hex() == new_id


@pytest.mark.parametrize("steps", range(6))
def test_a_crash_in_a_rotation_leaves_a_working_home(
    home: Home, settings: Settings, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Goal: any crash leaves a home that signs and verifies all it signed. Method: die before each write, go on."""
    signed = home.keyring(settings).sign(ENVELOPE)
    left = steps

    def dying(write: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return write(*arguments, **named)

        return step

    with monkeypatch.context() as patch:
        for module, name in (
            (_ring_files, "write_atomically"),
            (keys, "write_atomically"),
            (_ring_files, "drop_secret"),
        ):
            patch.setattr(module, name, dying(getattr(module, name)))
        patch.setattr("esper.core.home._write_home_file", dying(keys_home_writer()))
        if steps < 5:
            with pytest.raises(KeyboardInterrupt):
                rotate(home, settings)
        else:
            rotate(home, settings)
    ring = Home.open(settings).keyring(settings)
    between = ring.sign(ENVELOPE)
    assert ring.signing_key_id == home.key_fingerprint
    assert (ring.signing_key_id == signed[:8].hex()) is (steps < 3)
    newest = rotate(home, settings)
    after = home.keyring(settings)
    assert after.signing_key_id == newest == fingerprint((home.root / "key").read_bytes().strip())
    assert [after.verify(ENVELOPE, one) for one in (signed, between, after.sign(ENVELOPE))] == [Verdict.GOOD] * 3


def keys_home_writer() -> Callable[..., Any]:
    """Return the function that writes home.json."""
    from esper.core import home as module

    return module._write_home_file


def test_another_secret_in_the_key_file_is_refused_after_rotations_too(home: Home, settings: Settings) -> None:
    """Goal: exit 3, nothing changed. Method: after a rotation put in a stranger's secret, and an older one."""
    old = (home.root / "key").read_bytes()
    rotate(home, settings)
    present = (home.root / "key").read_bytes()
    for wrong in (b"x" * 40, old):
        (home.root / "key").write_bytes(wrong)
        before = {path: path.read_bytes() for path in home.root.rglob("*") if path.is_file()}
        for attempt in (lambda: home.keyring(settings), lambda: rotate(home, settings)):
            with pytest.raises(SecretError, match="is not the one of home") as caught:
                attempt()
            assert caught.value.exit_code == 3
        assert {path: path.read_bytes() for path in home.root.rglob("*") if path.is_file()} == before
    (home.root / "key").write_bytes(present)
    home.keyring(settings)


def test_rotation_races_nobody(home: Home, settings: Settings) -> None:
    """Goal: no ring is ever seen half-changed. Method: open, sign and verify in threads while keys are replaced."""
    stop, failures = threading.Event(), []
    shared = home.keyring(settings)

    def work() -> None:
        while not stop.is_set():
            try:
                own = Home.open(settings).keyring(settings)
                assert shared.verify(ENVELOPE, own.sign(ENVELOPE)) is Verdict.GOOD
                assert own.verify(ENVELOPE, shared.sign(ENVELOPE)) is Verdict.GOOD
            except BaseException as error:
                failures.append(error)
                raise

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    made = [rotate(home, settings) for _ in range(25)]
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(set(made)) == 25


def test_a_file_that_a_rotation_takes_away_and_another_brings_back_is_read(
    home: Home, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: the moment between two rotations stops nobody. Method: a file is gone when opened, then there again."""
    old_id = fingerprint((home.root / "key").read_bytes().strip())
    rotate(home, settings)
    path = home.root / "keys" / old_id
    content, reads = path.read_bytes(), []
    read = _ring_files.read_secret

    def late(asked: Path) -> bytes:
        reads.append(asked)
        if len(reads) == 1:
            path.unlink()
            try:
                return read(asked)
            finally:
                path.write_bytes(content)
                path.chmod(0o600)
        return read(asked)

    monkeypatch.setattr(_ring_files, "read_secret", late)
    assert _ring_files.older_secrets(home.root) == {old_id: content.strip()}
    assert reads == [path, path]


def test_a_flood_of_unknown_keys_reads_no_file(home: Home, settings: Settings) -> None:
    """Goal: unknown keys are cheap, and hide no genuine one. Method: 20,000 strangers, a rotation, its first record."""
    ring = home.keyring(settings)
    assert isinstance(ring, HomeKeyRing)
    flood = [os.urandom(size) for size in (40, 72) for _ in range(10_000)]
    assert {ring.verify(ENVELOPE, signature) for signature in flood} == {Verdict.UNKNOWN_KEY}
    assert ring.reloads == 0
    rotate(home, settings)
    genuine = home.keyring(settings).sign(ENVELOPE)
    assert ring.verify(ENVELOPE, flood[0]) is Verdict.UNKNOWN_KEY
    assert ring.verify(ENVELOPE, genuine) is Verdict.GOOD
    assert {ring.verify(ENVELOPE, signature) for signature in flood[:1_000]} == {Verdict.UNKNOWN_KEY}
    assert ring.reloads == 1


@pytest.mark.parametrize("size", [*range(129), 1_000, 100_000])
def test_no_length_of_signature_is_trusted(home: Home, settings: Settings, size: int) -> None:
    """Goal: every length gets a verdict. Method: 0 to 128 bytes and more, behind a known key's id and a stranger's."""
    ring = home.keyring(settings)
    for key_id in (bytes.fromhex(ring.signing_key_id), bytes(8)):
        assert ring.verify(ENVELOPE, (key_id + bytes(size))[:size]) in (Verdict.BAD, Verdict.UNKNOWN_KEY)


def older(home: Home, settings: Settings) -> Path:
    """Rotate and return the file of the older secret."""
    old_id = home.key_fingerprint or ""
    rotate(home, settings)
    return home.root / "keys" / old_id


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "open to the group": (lambda path: path.chmod(0o640), "open to other users.*0640"),
    "open to all": (lambda path: path.chmod(0o604), "open to other users.*0604"),
    "empty": (lambda path: path.write_bytes(b""), "at least 32 bytes"),
    "short": (lambda path: path.write_bytes(b"short\n"), "at least 32 bytes"),
    "another secret": (lambda path: path.write_bytes(b"x" * 64), "it holds the secret"),
    "no text": (lambda path: path.write_bytes(b"\xff" * 64), "cannot be read"),
    "huge": (lambda path: path.write_bytes(b"x" * 70_000), "larger than"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read|open to other"),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path, 0o600)), "at least 32 bytes"),
    "a link to nowhere": (lambda path: (path.unlink(), path.symlink_to("nowhere")), "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_older_key_is_refused(home: Home, settings: Settings, damage: str) -> None:
    """Goal: exit 3 and a next step, no traceback. Method: damage the older secret's file in each way."""
    apply, cause = DAMAGE[damage]
    apply(older(home, settings))
    with pytest.raises(SecretError, match=cause) as caught:
        home.keyring(settings)
    assert caught.value.next_step


def test_files_that_are_no_keys_are_passed_over(home: Home, settings: Settings) -> None:
    """Goal: a note or a half-written file beside the keys harms nothing. Method: put some there."""
    folder = older(home, settings).parent
    for name in ("README", ".0123456789abcdef.tmp", "0123456789ABCDEF", "0123456789abcdef.bak"):
        (folder / name).write_bytes(b"x")
    home.keyring(settings)


def test_a_ring_damaged_while_running_judges_no_unknown_key(home: Home, settings: Settings) -> None:
    """Goal: nothing genuine is refused for a damaged ring. Method: damage it, meet a stranger, repair it."""
    clock = ManualClock()
    ring = HomeKeyRing(home.root, lambda: home._keys(settings), clock=clock)
    good = ring.sign(ENVELOPE)
    path = older(home, settings)
    content = path.read_bytes()
    path.write_bytes(b"x")
    genuine = KeyRing.from_secrets((home.root / "key").read_bytes().strip()).sign(ENVELOPE)
    for _ in range(100):
        with pytest.raises(SecretError, match="at least 32 bytes"):
            ring.verify(ENVELOPE, genuine)
    assert ring.reloads == 1
    assert ring.verify(ENVELOPE, good) is Verdict.GOOD
    clock.advance(LOOK_SECONDS)
    assert ring.verify(ENVELOPE, ring.sign(ENVELOPE)) is Verdict.GOOD
    path.write_bytes(content)
    clock.advance(1.0)
    assert ring.verify(ENVELOPE, genuine) is Verdict.GOOD
    assert ring.verify(ENVELOPE, b"\0" * 40) is Verdict.UNKNOWN_KEY


def test_only_one_process_changes_keys(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: two rotations never mix. Method: ask for the lock while it is held."""
    monkeypatch.setattr(keys, "_LOCK_SECONDS", 0.01)
    with keys_lock(home.root), pytest.raises(Busy, match="are being changed"), keys_lock(home.root):
        pytest.fail("two processes change the keys")
    with keys_lock(home.root):
        pass


@pytest.mark.parametrize("bootstrap", [None, "broker:9092"])
def test_a_secret_by_environment_rotates_there(tmp_path: Path, bootstrap: str | None) -> None:
    """Goal: exit 2 with the variables to set, and then it works. Method: rotate before and after they are set."""
    place: dict[str, Any] = {"_env_file": None, "home": tmp_path / "home", "kafka_bootstrap": bootstrap}
    first = load_settings(**place, leyline_secret=OLD)
    home = Home.create(first)
    old = home.keyring(first).sign(ENVELOPE)
    with pytest.raises(UsageError, match="comes by environment") as caught:
        home.begin_rotation(first)
    assert caught.value.exit_code == 2
    assert "ESPER_LEYLINE_SECRET" in caught.value.next_step
    assert "ESPER_LEYLINE_PREVIOUS_SECRETS" in caught.value.next_step
    with pytest.raises(SecretError, match="is not the one of home"):
        home.begin_rotation(load_settings(**place, leyline_secret=NEW))
    second = load_settings(**place, leyline_secret=NEW, leyline_previous_secrets=OLD)
    with pytest.raises(SecretError, match="is not the one of home"):
        home.keyring(second)
    rotation, vouching = home.begin_rotation(second)
    assert home.keyring(vouching).sign(ENVELOPE) == old
    home.finish_rotation(rotation)
    ring = home.keyring(second)
    assert ring.signing_key_id == fingerprint(NEW.encode()) == home.key_fingerprint
    assert ring.verify(ENVELOPE, old) is Verdict.GOOD
    assert not (home.root / "key").exists()
    assert not (home.root / "keys").exists()


def test_signers_are_made_once(home: Home, guarded: Settings) -> None:
    """Goal: each source has its own key, private ones closed, and none is replaced. Method: create the home again."""
    folder = home.root / "signers"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {f"{source}.{kind}" for source in SIGNER_SOURCES for kind in ("key", "pub")}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.key")} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    Home.create(guarded)
    (folder / "tamiyo.key").unlink()
    assert make_signers(home.root) == []
    ring = home.keyring(guarded)
    assert len(ring.sign(COMMAND, source="cli")) == SIGNER_SIGNATURE_BYTES
    assert len(ring.sign(ENVELOPE, source="cli")) == 40
    with pytest.raises(SecretError, match="tamiyo cannot sign AdaptationCommand") as caught:
        ring.sign(COMMAND, source="tamiyo")
    assert "rotate --signer tamiyo" in caught.value.next_step
    assert len(home.keyring(guarded.model_copy(update={"signature_scheme": "hmac"})).sign(COMMAND, source="cli")) == 40


def test_homes_of_a_cluster_get_no_signers(tmp_path: Path) -> None:
    """Goal: a machine that only verifies makes no keys. Method: create a home for a cluster with signers asked for."""
    remote = load_settings(
        _env_file=None,
        home=tmp_path / "home",
        kafka_bootstrap="broker:9092",
        leyline_secret=NEW,
        signature_scheme="ed25519",
    )
    assert not (Home.create(remote).root / "signers").exists()


def other_pem(_: Path) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def encrypted_pem(_: Path) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

    encryption = BestAvailableEncryption(b"a password")
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


SIGNER_DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "private key open to others": ("tamiyo.key", lambda path: path.chmod(0o644), "open to other users.*chmod 600"),
    "public key writable by others": ("tamiyo.pub", lambda path: path.chmod(0o666), "open to other users.*chmod 644"),
    "private key empty": ("tamiyo.key", lambda path: path.write_bytes(b""), "no unencrypted Ed25519 key"),
    "private key nonsense": ("tamiyo.key", lambda path: path.write_bytes(b"\xff" * 99), "no unencrypted Ed25519 key"),
    "private key of another kind": ("tamiyo.key", lambda path: path.write_bytes(other_pem(path)), "no unencrypted"),
    "private key encrypted": ("tamiyo.key", lambda path: path.write_bytes(encrypted_pem(path)), "no unencrypted"),
    "private key of nobody": (
        "tamiyo.key",
        lambda path: path.write_bytes(PrivateKey.generate(source="x").to_pem()),
        "its public key .* is not in",
    ),
    "private key huge": ("tamiyo.key", lambda path: path.write_bytes(b"x" * 70_000), "larger than"),
    "public key short": ("tamiyo.pub", lambda path: path.write_text("ab" * 31), "line 1: an Ed25519 public key has 32"),
    "public key long": ("tamiyo.pub", lambda path: path.write_text("ab" * 33), "line 1"),
    "public key no number": ("tamiyo.pub", lambda path: path.write_text("# mine\nxyz\n"), "line 2"),
    "public key no text": ("tamiyo.pub", lambda path: path.write_bytes(b"\xff\xfe"), "line 1"),
    "public key of two": ("tamiyo.pub", lambda path: path.write_bytes(path.with_name("cli.pub").read_bytes()), "too"),
    "a file for a folder": ("", lambda path: (move_away(path), path.write_bytes(b"")), "cannot be read"),
}


def move_away(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


@pytest.mark.parametrize("damage", SIGNER_DAMAGE)
def test_a_damaged_signer_file_is_refused(home: Home, guarded: Settings, damage: str) -> None:
    """Goal: exit 3 and a next step, no traceback. Method: damage a signer's files in each way."""
    name, apply, cause = SIGNER_DAMAGE[damage]
    apply(home.root / "signers" / name if name else home.root / "signers")
    with pytest.raises(SecretError, match=cause) as caught:
        home.keyring(guarded)
    assert caught.value.exit_code == 3
    assert caught.value.next_step


def test_signers_that_need_no_key_get_none(home: Home) -> None:
    """Goal: no file by a hostile name. Method: ask for keys of sources that sign nothing guarded."""
    for source in ("tolaria", "../cli", "", "CLI"):
        with pytest.raises(UsageError, match="needs no key of its own"):
            keys.begin_signer_rotation(home.root, source, None)
    assert not (home.root / "signers").exists()


def test_nothing_secret_is_shown(home: Home, guarded: Settings) -> None:
    """Goal: no secret in a log or traceback. Method: look at what each object says of itself."""
    rotation, _ = home.begin_rotation(guarded)
    signer = keys.begin_signer_rotation(home.root, "cli", None)
    secret = (home.root / "key").read_text().strip()
    shown = f"{rotation!r} {signer!r} {home.keyring(guarded)!r} {home.keyring(guarded).keys!r}"
    assert rotation.secret is not None
    assert rotation.secret.decode() not in shown
    assert secret not in shown
    assert signer.key.to_pem().decode() not in shown


def test_a_home_that_cannot_be_written_says_so(home: Home, settings: Settings) -> None:
    """Goal: exit 2 and the path, nothing half-done. Method: a file where the folder of keys would be."""
    (home.root / "keys").write_bytes(b"")
    with pytest.raises((SettingsError, SecretError)) as caught:
        home.begin_rotation(settings)
    assert str(home.root / "keys") in str(caught.value)


def test_a_set_of_keys_needs_long_secrets() -> None:
    """Goal: no weak key signs. Method: 31 bytes, as the signing and as an older secret."""
    for secrets in ((b"x" * 31, ()), (b"x" * 32, (b"x" * 31,))):
        with pytest.raises(ValueError, match="31"):
            KeySet.of(*secrets)
