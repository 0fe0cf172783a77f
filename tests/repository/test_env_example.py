"""`.env.example` and the settings say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from esper.core.settings import Settings
from tests.repository.tree import text_of

ENTRY = re.compile(r"^# (?P<description>.+)\n#(?P<name>ESPER_[A-Z_]+)=(?P<default>.*)$", re.MULTILINE)


def in_file() -> dict[str, tuple[str, str]]:
    """Map each variable of the file to its default and description."""
    return {
        entry["name"]: (entry["default"], entry["description"]) for entry in ENTRY.finditer(text_of(".env.example"))
    }


def shown(default: object) -> str:
    """Write a default as an environment variable would hold it."""
    assert not isinstance(default, SecretStr), "no secret has a default"
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "" if default is None else str(default)


def in_settings() -> dict[str, tuple[str, str]]:
    """Map each variable of the settings to its default and description."""
    return {
        f"ESPER_{name}".upper(): (shown(field.default), field.description or "")
        for name, field in Settings.model_fields.items()
    }


def test_file_and_settings_agree() -> None:
    """Every setting stands in the file with its default and description, and nothing else does: compare the maps."""
    assert in_file() == in_settings()


def test_every_variable_is_described() -> None:
    """No variable line of .env.example lacks its description: count the lines that name one."""
    lines = [line for line in text_of(".env.example").splitlines() if line.startswith("#ESPER_")]
    assert len(lines) == len(in_file())


def test_every_setting_has_a_description() -> None:
    """A setting without a description cannot be documented: look at each field."""
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_copied_file_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A .env made of all values that the file shows gives the defaults: uncomment it and load it."""
    for name in in_settings():
        monkeypatch.delenv(name, raising=False)
    given = [f"{name}={default}" for name, (default, _) in in_file().items() if default]
    (tmp_path / ".env").write_text("\n".join(given), encoding="utf-8")
    loaded = Settings(_env_file=tmp_path / ".env")  # type: ignore[call-arg]  # pydantic-settings takes it, unseen by mypy
    assert loaded.model_dump() == {name: field.default for name, field in Settings.model_fields.items()}
