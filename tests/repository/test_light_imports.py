"""Importing a part does not drag in what only another part needs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

LOADED = "import importlib, json, sys; importlib.import_module({package!r}); print(json.dumps(sorted(sys.modules)))"


def modules_after_importing(package: str) -> set[str]:
    """Import a package in a fresh process and give the names of all modules that it loaded."""
    command = [sys.executable, "-c", LOADED.format(package=package)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(result.stdout))


@pytest.mark.parametrize("package", ["esper.kasmina", "esper.tolaria"])
def test_training_process_stays_light(package: str) -> None:
    """A GPU worker needs no analytics: import its package in a fresh process and look at what was loaded."""
    assert modules_after_importing(package).isdisjoint({"duckdb", "pyarrow", "sklearn"})


@pytest.mark.parametrize("package", ["esper", "esper.leyline", "esper.oona"])
def test_fabric_needs_no_torch(package: str) -> None:
    """Talking to the log is quick to start: neither the contracts nor the fabric load torch or duckdb."""
    assert modules_after_importing(package).isdisjoint({"torch", "duckdb", "pyarrow"})


def test_commands_start_light() -> None:
    """Whoever asks for the broker's state waits for no analytics: import the whole tree of commands, look what came."""
    assert modules_after_importing("esper.cli._app").isdisjoint({"torch", "duckdb", "pyarrow", "numpy"})


COMPILED = """
import json, sys
from esper.core.kernel import load_kernel, make_artifact
from esper.karn import KarnCatalog
from esper.leyline import messages as ly
request = ly.KernelRequestSpec(
    blueprint_id="BP021",
    layout="vector",
    in_shape=[8],
    out_shape=[8],
    dtype="float32",
    parameters={"hidden_multiple": 2.0},
)
load_kernel(make_artifact(request, KarnCatalog().build_spec(request)))
print(json.dumps(sorted(sys.modules)))
"""


def test_making_a_kernel_imports_no_algebra() -> None:
    """An epoch's edge waits for a first kernel: make and load one, and see that torch fetched no sympy for it."""
    result = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=True, timeout=120)
    assert "sympy" not in json.loads(result.stdout)
