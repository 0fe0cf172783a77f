"""docs/projections.md teaches what works: each block as it stands, in order, in one shell, against a real broker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.driver import REPOSITORY

_BLOCK = re.compile(r"^```(?P<kind>sh|text)\n(?P<content>.*?)^```$", re.MULTILINE | re.DOTALL)
#: Stands for any words within a line of what a command prints.
_ANYTHING = "..."


def lessons() -> list[tuple[str, str | None]]:
    """Return each shell block of the page, with the output that the page shows below it."""
    page = (REPOSITORY / "docs" / "projections.md").read_text(encoding="utf-8")
    found: list[tuple[str, str | None]] = []
    for match in _BLOCK.finditer(page):
        if match["kind"] == "sh":
            found.append((match["content"], None))
        else:
            assert found, "what is shown was printed by something"
            assert found[-1][1] is None, "one output for each block"
            found[-1] = (found[-1][0], match["content"])
    return found


class Reader:
    """Somebody who types what the page says; what he exports stays for the next block."""

    def __init__(self, folder: Path) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("ESPER_") or k == "ESPER_REQUIRE_REAL"}
        self.folder = folder
        self.environment = clean | {
            "ESPER_HOME": str(folder / "home"), "PATH": path, "COLUMNS": "300", "NO_COLOR": "1",
        }  # fmt: skip
        self._exports = folder / "exports"
        self._exports.touch()

    def type(self, block: str, *, seconds: float = 400.0) -> str:
        """Run a block and return what it printed, both streams."""
        script = f"set -euo pipefail\nsource {self._exports}\n{block}\nexport -p > {self._exports}\n"
        answer = subprocess.run(
            ["bash", "-c", script], env=self.environment, cwd=self.folder, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=seconds,
        )  # fmt: skip
        assert answer.returncode == 0, f"{block}\n{answer.stdout}"
        return answer.stdout


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A reader in an empty folder; the broker that he starts is stopped at the end."""
    reader = Reader(tmp_path)
    try:
        yield reader
    finally:
        reader.type("esper down", seconds=60)


def shows(printed: str, expected: str) -> bool:
    """Return whether the expected lines were printed one below the other."""
    wanted = [".*".join(map(re.escape, line.rstrip().split(_ANYTHING))) for line in expected.splitlines()]
    lines = [line.rstrip() for line in printed.splitlines()]
    starts = range(len(lines) - len(wanted) + 1)
    return any(
        all(re.fullmatch(pattern, line) for pattern, line in zip(wanted, lines[start:], strict=False))
        for start in starts
    )


def test_a_projection_is_added_as_the_page_says(reader: Reader) -> None:
    """Goal: ten minutes are enough. Method: type each block of the page and look for the output that it shows."""
    blocks = lessons()
    assert sum(expected is not None for _, expected in blocks) >= 7
    for block, expected in blocks:
        printed = reader.type(block)
        assert expected is None or shows(printed, expected), f"{block}\nprinted:\n{printed}"
