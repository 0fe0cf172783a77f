"""The home: its files, its secret, its members."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from esper.core.clock import Deadline
from esper.core.errors import Busy, EsperError, NotReadyError, SecretError, SettingsError
from esper.core.home import (
    Home,
    MemberInfo,
    ProcessStamp,
    live_members,
    mark_ready,
    member_lock,
    read_stamp,
    write_stamp,
)
from esper.core.settings import Settings, load_settings
from esper.leyline import Envelope, Verdict, fingerprint

MINE = "an old secret of thirty-two bytes and more"
OTHER = "another secret of thirty-two bytes and more"
ENVELOPE = Envelope(topic="runs", partition=0, key="run-1", type_name="T", value=b"value")

HOLD = """
import os, sys, time
from esper.core.home import Home, member_lock
from esper.core.settings import load_settings
with member_lock(Home.open(load_settings(home=sys.argv[1])), sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _no_settings_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run where there is no .env file."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a home that does not exist yet."""
    return load_settings(home=tmp_path / "home")


@pytest.fixture
def home(settings: Settings) -> Home:
    """A new loopback home."""
    return Home.create(settings)


def settings_with(settings: Settings, **changes: Any) -> Settings:
    """Return validated settings of the same home with some values changed."""
    return load_settings(**({"home": settings.home} | changes))


def wait_until(condition: Callable[[], bool], *, seconds: float = 10.0) -> None:
    """Poll until the condition holds; fail at the deadline."""
    deadline = Deadline(seconds)
    while not condition():
        assert not deadline.expired, "the condition never held"


@contextmanager
def member_process(home: Home, name: str) -> Iterator[subprocess.Popen[str]]:
    """Run another process that is member `name` until the block ends."""
    command = [sys.executable, "-c", HOLD, str(home.root), name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_new_home_has_its_files_and_a_private_key(home: Home, settings: Settings) -> None:
    """Goal: `init` leaves a whole home. Method: look at every path and at the key's mode."""
    for folder in (home.blobs, home.projections, home.members, home.logs, home.broker):
        assert folder.is_dir()
        assert folder.parent == home.root
    content = json.loads((home.root / "home.json").read_text())
    secret = (home.root / "key").read_text().strip()
    assert stat.S_IMODE((home.root / "key").stat().st_mode) == 0o600
    assert len(bytes.fromhex(secret)) == 32
    assert content == {
        "format": 1,
        "home_id": home.home_id,
        "key_fingerprint": fingerprint(secret.encode()),
        "broker_port": None,
        "broker_secure": False,
    }
    assert Home.open(settings).home_id == home.home_id
    assert not list(home.root.glob(".*.tmp"))


def test_creating_a_home_again_changes_nothing(home: Home, settings: Settings) -> None:
    """Goal: `init` is idempotent. Method: create again, also with a secret of the user's, and compare bytes."""
    before = {name: (home.root / name).read_bytes() for name in ("home.json", "key")}
    assert Home.create(settings).home_id == home.home_id
    assert Home.create(settings_with(settings, leyline_secret=OTHER)).home_id == home.home_id
    assert {name: (home.root / name).read_bytes() for name in before} == before


def test_many_creators_make_one_home(settings: Settings) -> None:
    """Goal: concurrent `init` gives one id and one key. Method: eight threads, each with its own lock handle."""
    with ThreadPoolExecutor(8) as pool:
        homes = list(pool.map(lambda _: Home.create(settings), range(16)))
    assert len({home.home_id for home in homes}) == 1
    assert homes[0].keyring(settings).signing_key_id == homes[0].key_fingerprint


def test_an_interrupted_creation_is_completed(settings: Settings) -> None:
    """Goal: a crash between key and home.json loses no key. Method: remove home.json, create, compare the key."""
    home = Home.create(settings)
    key = (home.root / "key").read_bytes()
    (home.root / "home.json").unlink()
    again = Home.create(settings)
    assert (home.root / "key").read_bytes() == key
    assert again.key_fingerprint == fingerprint(key.strip())


def test_links_to_a_home_are_the_same_home(home: Home, settings: Settings, tmp_path: Path) -> None:
    """Goal: processes recognise each other by the home's path. Method: open it through a symbolic link."""
    (tmp_path / "link").symlink_to(home.root)
    assert Home.open(settings_with(settings, home=tmp_path / "link")).root == home.root


def test_a_home_that_is_not_there_says_what_to_do(settings: Settings) -> None:
    """Goal: exit 3 and a next step. Method: open a path that does not exist."""
    with pytest.raises(NotReadyError, match=r"there is no Esper home at .* Run `esper init`.*ESPER_HOME") as caught:
        Home.open(settings)
    assert caught.value.exit_code == 3
    assert not settings.home.exists()


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Goal: one clear error, nothing half-written. Method: a home below a regular file, which even root cannot make."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"home .*file/home cannot be written.*Set ESPER_HOME") as caught:
        Home.create(load_settings(home=tmp_path / "file" / "home"))
    assert caught.value.exit_code == 2
    assert (tmp_path / "file").read_text() == ""
    with pytest.raises(NotReadyError, match="there is no Esper home"):
        Home.open(load_settings(home=tmp_path / "file" / "home"))


def test_a_home_that_became_unwritable_is_named(home: Home, settings: Settings) -> None:
    """Goal: later writes fail as clearly. Method: a folder where the lock file or the temporary file must be."""
    (home.root / "home.lock").unlink(missing_ok=True)
    (home.root / "home.lock").mkdir()
    with pytest.raises(SettingsError, match="cannot be written"):
        home.remember_broker_port(20_000)
    (home.members / "tolaria-1.lock").mkdir()
    with pytest.raises(SettingsError, match="cannot be written"), member_lock(home, "tolaria-1"):
        pytest.fail("a member without a lock")
    assert Home.open(settings).broker_port is None


@pytest.mark.parametrize("path", ["~nobody-of-this-name/home", "loop"])
def test_a_path_that_means_nothing_is_named(path: str, tmp_path: Path) -> None:
    """Goal: no traceback for a path that cannot be resolved. Method: an unknown user's home, a link to itself."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(EsperError, match=r"(cannot be used|cannot be written).*Set ESPER_HOME"):
        Home.create(load_settings(home=Path(path)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"format": 2, "home_id": "%s"}' % (b"a" * 32),
        b'{"format": 1, "home_id": "short"}',
        b'{"format": 1, "home_id": "%s", "broker_port": "many"}' % (b"a" * 32),
        b'{"format": 1, "home_id": "%s", "broker_port": 70000}' % (b"a" * 32),
        b'{"format": 1, "home_id": "%s", "surprise": 1}' % (b"a" * 32),
    ],
)
def test_a_corrupt_home_file_is_refused_and_kept(home: Home, settings: Settings, content: bytes) -> None:
    """Goal: exit 2, and nobody overwrites the evidence. Method: damaged content, then open and create."""
    path = home.root / "home.json"
    path.write_bytes(content)
    for use in (Home.open, Home.create):
        with pytest.raises(SettingsError, match=r"home\.json is not a home file that this Esper reads") as caught:
            use(settings)
        assert caught.value.exit_code == 2
        assert caught.value.next_step
    assert path.read_bytes() == content


def test_an_unreadable_home_file_is_refused(home: Home, settings: Settings) -> None:
    """Goal: not mistaken for an absent home. Method: a folder in its place."""
    (home.root / "home.json").unlink()
    (home.root / "home.json").mkdir()
    with pytest.raises(SettingsError, match=r"home\.json cannot be read"):
        Home.open(settings)


def test_the_port_is_remembered(home: Home, settings: Settings) -> None:
    """Goal: the broker comes back where it was. Method: remember twice, read through another handle."""
    home.remember_broker_port(20_001)
    home.remember_broker_port(20_001)
    other = Home.open(settings)
    assert other.broker_port == 20_001
    assert other.key_fingerprint == home.key_fingerprint


def test_the_home_key_signs(home: Home, settings: Settings) -> None:
    """Goal: no secret needed on loopback. Method: sign with one handle, verify with another."""
    signature = home.keyring(settings).sign(ENVELOPE)
    assert Home.open(settings).keyring(settings).verify(ENVELOPE, signature) is Verdict.GOOD


def test_the_key_file_content_works_as_setting(home: Home, settings: Settings) -> None:
    """Goal: a home's key can be carried to another machine. Method: set its text as ESPER_LEYLINE_SECRET."""
    text = (home.root / "key").read_text()
    signature = home.keyring(settings_with(settings, leyline_secret=text)).sign(ENVELOPE)
    assert home.keyring(settings).verify(ENVELOPE, signature) is Verdict.GOOD


def test_a_secret_of_the_users_binds_the_home(settings: Settings) -> None:
    """Goal: a home starts with one secret for ever. Method: create with one, then use another and none."""
    mine = settings_with(settings, leyline_secret=MINE)
    home = Home.create(mine)
    assert not (home.root / "key").exists()
    assert home.keyring(mine).signing_key_id == home.key_fingerprint == fingerprint(MINE.encode())
    with pytest.raises(SecretError, match="is not the one of home") as caught:
        home.keyring(settings_with(settings, leyline_secret=OTHER))
    assert caught.value.exit_code == 3
    assert MINE not in str(caught.value)
    assert OTHER not in str(caught.value)
    with pytest.raises(SecretError, match="has no key"):
        home.keyring(settings)


def test_older_secrets_only_verify(home: Home, settings: Settings) -> None:
    """Goal: records signed before a rotation stay good. Method: verify with and without the older secret."""
    old = home.keyring(settings).sign(ENVELOPE)
    other = Home.create(load_settings(home=settings.home.with_name("other"), leyline_secret=MINE))
    key = (home.root / "key").read_text().strip()
    ring = other.keyring(
        load_settings(home=other.root, leyline_secret=MINE, leyline_previous_secrets=f"{OTHER}, {key},")
    )
    assert ring.verify(ENVELOPE, old) is Verdict.GOOD
    assert ring.sign(ENVELOPE) != old
    without = other.keyring(load_settings(home=other.root, leyline_secret=MINE))
    assert without.verify(ENVELOPE, old) is Verdict.UNKNOWN_KEY


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ESPER_LEYLINE_SECRET", {"leyline_secret": "x" * 31}),
        ("ESPER_LEYLINE_SECRET", {"leyline_secret": " " * 40}),
        ("ESPER_LEYLINE_PREVIOUS_SECRETS", {"leyline_previous_secrets": f"{OTHER},short"}),
    ],
)
def test_short_secrets_are_refused(home: Home, settings: Settings, name: str, values: dict[str, str]) -> None:
    """Goal: exit 3 under 32 bytes. Method: 31 bytes, blanks, and a short older secret."""
    with pytest.raises(SecretError, match=f"{name} cannot be used.*at least 32 bytes"):
        home.keyring(settings_with(settings, **values))


def test_a_short_secret_makes_no_home(settings: Settings) -> None:
    """Goal: nothing half-made. Method: create with a short secret, then look for home.json."""
    with pytest.raises(SecretError, match="ESPER_LEYLINE_SECRET cannot be used"):
        Home.create(settings_with(settings, leyline_secret=MINE[:31]))
    assert not (settings.home / "home.json").exists()


def test_a_cluster_needs_a_secret_and_pins_it_at_first_use(settings: Settings) -> None:
    """Goal: remote records are never signed by a local key. Method: a home for a cluster, with and without secret."""
    remote = settings_with(settings, kafka_bootstrap="broker:9092")
    home = Home.create(remote)
    assert home.key_fingerprint is None
    assert not (home.root / "key").exists()
    with pytest.raises(SecretError, match="ESPER_LEYLINE_SECRET is not"):
        home.keyring(remote)
    with_secret = settings_with(settings, kafka_bootstrap="broker:9092", leyline_secret=MINE)
    assert home.keyring(with_secret).signing_key_id == home.key_fingerprint == fingerprint(MINE.encode())
    with pytest.raises(SecretError, match="is not the one of home"):
        home.keyring(settings_with(settings, kafka_bootstrap="broker:9092", leyline_secret=OTHER))


def test_a_local_home_refuses_a_cluster_without_secret(home: Home, settings: Settings) -> None:
    """Goal: the key file is for loopback only. Method: an existing key, then a cluster."""
    with pytest.raises(SecretError, match="needs a signing secret of its own"):
        home.keyring(settings_with(settings, kafka_bootstrap="broker:9092"))


def test_the_first_secret_wins_a_race(settings: Settings) -> None:
    """Goal: two members with two secrets cannot both bind a home. Method: bind through one, use the other's handle."""
    home = Home.create(settings_with(settings, kafka_bootstrap="broker:9092"))
    both = [settings_with(settings, kafka_bootstrap="broker:9092", leyline_secret=secret) for secret in (MINE, OTHER)]

    def bind(each: Settings) -> bool:
        try:
            home.keyring(each)
        except SecretError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(bind, both)) == [False, True]


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda key: key.chmod(0o644), r"open to other users.*0644.*chmod 600"),
        (lambda key: key.write_text("short\n"), "at least 32 bytes"),
        (lambda key: key.write_bytes(b"\xff" * 64), "cannot be read"),
        (lambda key: key.write_text("x" * 64), "is not the one of home"),
        (lambda key: key.unlink(), "has no key"),
    ],
)
def test_a_damaged_key_file_is_refused(
    home: Home, settings: Settings, damage: Callable[[Path], object], cause: str
) -> None:
    """Goal: exit 3 and a next step, and `init` does not replace it. Method: damage the key file in each way."""
    damage(home.root / "key")
    Home.create(settings)
    with pytest.raises(SecretError, match=cause) as caught:
        home.keyring(settings)
    assert caught.value.next_step


def test_a_member_is_one_process(home: Home) -> None:
    """Goal: two processes never are one member. Method: another process holds the name; it dies by SIGKILL."""
    with member_process(home, "tolaria-1") as process:
        assert live_members(home) == [MemberInfo(name="tolaria-1", pid=process.pid, state="starting")]
        with pytest.raises(Busy, match=f"process {process.pid} holds its lock"), member_lock(home, "tolaria-1"):
            pytest.fail("two processes are one member")
        with member_lock(home, "tolaria-2"):
            assert [member.name for member in live_members(home)] == ["tolaria-1", "tolaria-2"]
        process.kill()
        process.wait()
        assert live_members(home) == []
        with member_lock(home, "tolaria-1"):
            assert [member.pid for member in live_members(home)] == [os.getpid()]
    assert live_members(home) == []


def test_a_member_is_one_handle(home: Home) -> None:
    """Goal: the lock holds within a process too. Method: take the same name twice, then free it."""
    with member_lock(home, "tamiyo-1"), pytest.raises(Busy), member_lock(home, "tamiyo-1"):
        pytest.fail("one process is the same member twice")
    with member_lock(home, "tamiyo-1"):
        assert [member.name for member in live_members(home)] == ["tamiyo-1"]


def test_a_member_says_when_it_is_at_work(home: Home) -> None:
    """Goal: starting is told from running, for one life only. Method: mark ready with and without the lock."""
    mark_ready(home, "karn-1")
    with member_lock(home, "karn-1"):
        assert [member.state for member in live_members(home)] == ["starting"]
        mark_ready(home, "karn-1")
        assert [member.state for member in live_members(home)] == ["running"]
    with member_lock(home, "karn-1"):
        assert [member.state for member in live_members(home)] == ["starting"]


def test_a_member_stopped_by_a_signal_is_suspended(home: Home) -> None:
    """Goal: `status` tells a halted member from a running one. Method: SIGSTOP, SIGCONT."""
    with member_process(home, "urza-1") as process:
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: [member.state for member in live_members(home)] == ["suspended"])
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: [member.state for member in live_members(home)] == ["starting"])


@pytest.mark.parametrize("name", ["", "../evil", "Tolaria-1", ".hidden", "a/b", "a" * 101, "nul\0"])
def test_member_names_are_file_names(home: Home, name: str) -> None:
    """Goal: no lock outside the folder. Method: names that would leave it or cannot be files."""
    with pytest.raises(SettingsError, match="member name"), member_lock(home, name):
        pytest.fail("a name that is no file name")
    assert list(home.members.iterdir()) == []


def test_stamps_name_one_life_of_one_process_of_one_home(home: Home, tmp_path: Path) -> None:
    """Goal: a reused pid is nobody's. Method: stamps that agree with this process in all but one field."""
    mine = ProcessStamp.of(os.getpid(), home.root)
    process = mine.process(home.root)
    assert process is not None
    assert process.pid == os.getpid()
    assert mine.process(tmp_path) is None
    assert ProcessStamp(mine.pid, mine.create_time - 60.0, mine.home).process(home.root) is None
    assert ProcessStamp(-1, mine.create_time, mine.home).process(home.root) is None
    assert ProcessStamp(2**70, mine.create_time, mine.home).process(home.root) is None
    ended = subprocess.Popen([sys.executable, "-c", ""])
    stamp = ProcessStamp.of(ended.pid, home.root)
    wait_until(lambda: psutil.Process(ended.pid).status() == psutil.STATUS_ZOMBIE)
    assert stamp.process(home.root) is None
    ended.wait()
    assert stamp.process(home.root) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pid": "x", "create_time": 1, "home": "h"}', '{"pid": null}'])
def test_damaged_stamps_name_nobody(home: Home, content: str) -> None:
    """Goal: a damaged member file is passed over. Method: damaged content beside a good one."""
    (home.members / "karn-1.json").write_text(content)
    assert read_stamp(home.members / "karn-1.json") is None
    write_stamp(home.members / "urza-1.json", ProcessStamp.of(os.getpid(), home.root))
    assert [member.name for member in live_members(home)] == ["urza-1"]
