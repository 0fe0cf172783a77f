"""What commands say to people where there is little to show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from esper.cli._members import status
from esper.cli._runs_fork import _show
from esper.core.home import Home, member_lock
from esper.core.settings import load_settings


def compared(equal: int) -> dict[str, Any]:
    """Return the document of two runs that part after `equal` epochs."""
    parted = {"epoch": equal + 1, "field": "val_loss", "a": 1.5, "b": 2.5}
    return {"equal_epochs": equal, "first_difference": parted, "request": {}, "end": {}, "epochs": []}


def test_runs_that_have_nothing_in_common(capsys: pytest.CaptureFixture[str]) -> None:
    """Goal: no epoch 0 is spoken of. Method: runs that part at once, and after three epochs."""
    _show(compared(0))
    assert "they differ from the first epoch on, in val_loss: 1.5 and 2.5" in capsys.readouterr().out
    _show(compared(3))
    assert "equal up to epoch 3; then val_loss" in capsys.readouterr().out


def test_a_home_where_nobody_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Goal: `status` says what is missing and how to start it. Method: without a member, and with one."""
    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "home"))
    home = Home.create(load_settings())
    status(json=False)
    assert "no members (esper serve)" in capsys.readouterr().out
    with member_lock(home, "karn-0"):
        status(json=False)
    shown = capsys.readouterr().out
    assert "karn-0" in shown
    assert "no members" not in shown
