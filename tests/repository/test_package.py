"""What an installed `esper-grow` consists of."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.repository.tree import ROOT, source_files


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel as an installer would, without a network."""
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    return zipfile.ZipFile(next(target.glob("*.whl")))


def test_wheel_holds_the_whole_package(wheel: zipfile.ZipFile) -> None:
    """Every file of esper/ is installed, data and type marker included: compare the archive with the tree."""
    entry = "esper/cli/entry.py"  # installed as a module of its own, see test_command_is_installed
    wanted = {str(path) for path in source_files() if path.parts[0] == "esper"} - {entry}
    installed = {name for name in wheel.namelist() if name.startswith("esper/")}
    assert "esper/py.typed" in installed
    assert "esper/oona/broker/jars.lock" in installed
    assert wanted <= installed


@pytest.mark.parametrize("folder", ["topics", "projections", "proto"])
def test_wheel_holds_the_shared_files(wheel: zipfile.ZipFile, folder: str) -> None:
    """Topic files, projections and contracts travel with the package: compare the archive with each folder."""
    wanted = {path.relative_to(folder) for path in source_files() if path.parts[0] == folder}
    marker = f"/share/esper-grow/{folder}/"
    installed = {Path(name.partition(marker)[2]) for name in wheel.namelist() if marker in name}
    assert wanted
    assert wanted <= installed


def test_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    """No test, secret or local state is shipped: look at the top of every name in the archive."""
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top.split("-")[0] for top in tops - {"esper", "esper_grow_entry.py"}} == {"esper_grow"}


def test_command_is_installed(wheel: zipfile.ZipFile) -> None:
    """`esper` is a command after installation, by a module that no foreign package called esper can hide: read both."""
    name = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "esper = esper_grow_entry:main" in wheel.read(name).decode()
    assert b"def main(" in wheel.read("esper_grow_entry.py")
