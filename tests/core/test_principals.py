"""Password files: who has one, who may read it, and what is said when one cannot be used."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from esper.core.errors import SecretError, SettingsError
from esper.core.home import Home
from esper.core.principals import ADMIN, Principals, check_principal
from esper.core.settings import load_settings


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Return a new home."""
    return Home.create(load_settings(_env_file=None, home=tmp_path / "home"))


@pytest.fixture
def made(home: Home) -> Principals:
    """Return the passwords of a home with two principals."""
    made = Principals(home)
    made.make([ADMIN, "tamiyo"])
    return made


def test_each_principal_gets_a_password_of_its_own(home: Home, made: Principals) -> None:
    """Goal: 256 random bits that only the owner reads. Method: modes, lengths and difference."""
    passwords = {made.password(name) for name in (ADMIN, "tamiyo")}
    assert len(passwords) == 2
    assert {len(bytes.fromhex(password)) for password in passwords} == {32}
    assert stat.S_IMODE((home.root / "principals").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (home.root / "principals").iterdir()} == {0o600}


def test_a_password_that_is_there_stays(made: Principals) -> None:
    """Goal: members that run keep their login. Method: make them again with one more, compare; remove that one."""
    before = made.password("tamiyo")
    made.make(["tamiyo", "urza"])
    assert made.password("tamiyo") == before
    assert made.names() == {ADMIN, "tamiyo", "urza"}
    made.remove("urza")
    assert made.names() == {ADMIN, "tamiyo"}


def test_a_home_without_principals_has_none(home: Home) -> None:
    """Goal: a plain home is asked without harm. Method: names, and one that is missing."""
    assert Principals(home).names() == set()
    with pytest.raises(SecretError, match=r"principal cli has no password.*Run `esper up` again") as caught:
        Principals(home).password("cli")
    assert (caught.value.exit_code, caught.value.retriable) == (3, False)


def test_a_file_open_to_others_is_refused(home: Home, made: Principals) -> None:
    """Goal: what others could read is no password. Method: widen the mode; the message does not show the content."""
    path, password = home.root / "principals" / "tamiyo", made.password("tamiyo")
    path.chmod(0o640)
    with pytest.raises(SecretError, match=r"open to other users: its mode is 0640\..*chmod 600") as caught:
        made.password("tamiyo")
    assert password not in str(caught.value)


@pytest.mark.parametrize(("content", "said"), [(b"\n", "is empty"), (b"caf\xc3\xa9-secret", "it is not ASCII")])
def test_a_damaged_file_is_named_without_its_content(home: Home, made: Principals, content: bytes, said: str) -> None:
    """Goal: the path and the cure, never the content. Method: overwrite a file."""
    (home.root / "principals" / "tamiyo").write_bytes(content)
    with pytest.raises(SecretError, match=said) as caught:
        made.password("tamiyo")
    assert "caf" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("name", ["", "Tamiyo", "../key", "a b", "-x", "x" * 65, 'x";', "User:x"])
def test_names_that_are_no_file_or_user_are_refused(made: Principals, name: str) -> None:
    """Goal: a topic file cannot name its way out of the folder or into a configuration. Method: hostile names."""
    with pytest.raises(SettingsError, match="cannot be used"):
        check_principal(name)
    with pytest.raises(SettingsError):
        made.password(name)
