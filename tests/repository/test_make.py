"""The one entry point: its targets are documented, and set-up never trusts a half-made environment."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.repository.tree import ROOT, text_of

NEEDED = {"setup", "demo", "test", "check", "lint", "types", "layers", "faults", "bench", "proto", "clean", "help"}


JARS = Path(".venv/share/esper-grow/jars")


def phony_targets() -> set[str]:
    """Name every target of the Makefile."""
    return {name for line in re.findall(r"^\.PHONY: (.+)$", text_of("Makefile"), re.MULTILINE) for name in line.split()}


def test_help_names_every_target() -> None:
    """Whoever types `make` sees all targets: run it and compare with the Makefile."""
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    described = {line.split()[0] for line in shown.splitlines() if len(line.split()) > 1}
    assert described == phony_targets()
    assert described >= NEEDED


@pytest.mark.parametrize("page", ["README.md", "docs/ARCHITECTURE.md", "docs/operations.md"])
def test_documented_targets_exist(page: str) -> None:
    """No page tells the reader to make what cannot be made: look up each `make NAME` in a code span or block."""
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", text_of(page), re.MULTILINE))
    assert named <= phony_targets()


def digest(path: Path) -> str:
    """Digest a file as .ci/setup does; a missing one counts as empty."""
    return hashlib.sha256(path.read_bytes() if path.exists() else b"").hexdigest()


def checkout(target: Path) -> Path:
    """Lay out just enough of a checkout for .ci/setup, with an environment that is complete by its stamp."""
    (target / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "setup", target / ".ci" / "setup")
    for name in ("requirements.lock", "pyproject.toml"):
        (target / name).write_text(name, encoding="utf-8")
    (target / ".venv" / "bin").mkdir(parents=True)
    jar = target / JARS / "kafka.jar"
    jar.parent.mkdir(parents=True)
    jar.write_bytes(b"jar")
    lock = target / "esper" / "oona" / "broker" / "jars.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text(
        f"# digest, name, coordinate\n{digest(jar)}  kafka.jar  org.apache.kafka:kafka:1\n", encoding="utf-8"
    )
    stamp = (
        f"environment {digest(target / 'requirements.lock')} {target}\n"
        f"package {digest(target / 'pyproject.toml')}\n"
        f"jars {digest(lock)}\n"
    )
    (target / ".venv" / ".setup-stamp").write_text(stamp, encoding="utf-8")
    return target


def setup(root: Path, *, python: str) -> subprocess.CompletedProcess[str]:
    """Run set-up with one named interpreter, whatever the caller's environment says."""
    environment = {**os.environ, "PYTHON": python}
    command = [str(root / ".ci" / "setup")]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)


def test_second_setup_does_nothing(tmp_path: Path) -> None:
    """A current stamp is enough, so no interpreter and no network is asked: name an interpreter that does not exist."""
    result = setup(checkout(tmp_path), python="no-such-python")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("spoiled", ["requirements.lock", ".venv/.setup-stamp"])
def test_stale_environment_loses_its_stamp(tmp_path: Path, spoiled: str) -> None:
    """What is not known to be whole never counts as good: spoil it, let the repair fail, and look for the stamp."""
    root = checkout(tmp_path)
    (root / spoiled).write_text("something else\n", encoding="utf-8")
    result = setup(root, python="no-such-python")
    assert result.returncode == 3
    assert "no Python 3.11 or newer found" in result.stderr
    assert not (root / ".venv" / ".setup-stamp").exists()


def test_old_python_is_refused_in_words(tmp_path: Path) -> None:
    """An interpreter that is too old gives one clear sentence and leaves nothing behind: stand in one that says no."""
    root = checkout(tmp_path)
    shutil.rmtree(root / ".venv")
    old = root / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    result = setup(root, python=str(old))
    assert result.returncode == 3
    assert result.stderr.count("\n") == 1
    assert "no Python 3.11 or newer found" in result.stderr
    assert not (root / ".venv").exists()


def test_interrupted_setup_starts_anew(tmp_path: Path) -> None:
    """A half-made environment is thrown away, not completed: leave a file in one without a stamp and fail the next."""
    root = checkout(tmp_path)
    (root / ".venv" / ".setup-stamp").unlink()
    (root / ".venv" / "half-written").write_text("", encoding="utf-8")
    python = root / "python"
    # Passes the checks of version and modules, then fails to make an environment.
    python.write_text('#!/bin/sh\n[ "$1" = -m ] && exit 7\nexit 0\n', encoding="utf-8")
    python.chmod(0o755)
    result = setup(root, python=str(python))
    assert result.returncode == 7
    assert not (root / ".venv" / "half-written").exists()
    assert not (root / ".venv" / ".setup-stamp").exists()


@pytest.mark.parametrize("damage", [Path.unlink, lambda jar: jar.write_bytes(b"other")], ids=["missing", "altered"])
def test_damaged_jars_are_fetched_again(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """A jar that differs from the lock is noticed and only the jars are repaired: stand in a fetcher and count."""
    root = checkout(tmp_path)
    stamp = root / ".venv" / ".setup-stamp"
    before = stamp.read_text(encoding="utf-8")
    calls = root / "calls"
    damage(root / JARS / "kafka.jar")
    for name, work in {"uv": "", "python": f"printf jar > {JARS}/kafka.jar"}.items():
        program = root / ".venv" / "bin" / name
        program.write_text(f"#!/bin/sh\necho {name} >> calls\n{work}\n", encoding="utf-8")
        program.chmod(0o755)
    for _ in range(2):
        assert setup(root, python="no-such-python").returncode == 0
    assert calls.read_text(encoding="utf-8").split() == ["uv", "python"]
    assert stamp.read_text(encoding="utf-8") == before
