"""`docs/brief.md` tells the truth about everything that the brief names."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.repository.tree import ROOT, text_of

PAGE = "docs/brief.md"
WORDS = "tests/repository/brief_words.txt"
STATES = {"exists", "replaced", "planned"}


@dataclass(frozen=True)
class Row:
    """One row of the table: what the brief names, its state, what stands for it here, and the tests that show it."""

    name: str
    state: str
    here: str
    tests: str

    def symbols(self) -> list[str]:
        """Name the Python objects that the row claims."""
        return re.findall(r"`(esper(?:\.\w+)+)`", self.here)

    def paths(self) -> list[str]:
        """Name the files and folders that the row claims."""
        return re.findall(
            r"`((?:esper|topics|projections|proto|tests|docs|benchmarks|\.ci)/[^`]*|Makefile|\.env\.example)`",
            self.here,
        )

    def decisions(self) -> list[str]:
        """Name the decision pages that the row links to."""
        return re.findall(r"\]\((adr/\S+\.md)\)", self.here)

    def test_references(self) -> list[str]:
        """Name the tests of the row, as `path` or `path::function`."""
        return re.findall(r"`(tests/[^`]+)`", self.tests)


def rows() -> list[Row]:
    """Parse every table row of the page."""
    found = []
    for line in text_of(PAGE).splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == 4 and cells[1] in STATES:
            found.append(Row(*cells))
    return found


def themes() -> set[str]:
    """Return the themes of planned work that the page's head defines."""
    return set(re.findall(r"^- \*\*(\w+)\*\*:", text_of(PAGE), re.MULTILINE))


def resolve(symbol: str) -> object:
    """Import the longest module of a dotted name and walk the rest as attributes; fields of classes count too."""
    parts = symbol.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        try:
            found: object = importlib.import_module(name)
        except ModuleNotFoundError as error:
            # A part of the name itself is no module; anything else is a fault inside a module that exists.
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            continue
        for part in parts[end:]:
            fields = getattr(found, "model_fields", getattr(found, "__dataclass_fields__", {}))
            found = fields[part] if part in fields else getattr(found, part)
        return found
    raise ModuleNotFoundError(symbol)


def test_every_word_of_the_brief_has_one_row() -> None:
    """Nothing of the brief is forgotten and nothing stands twice: compare the rows with the list of its words."""
    words = [line for line in text_of(WORDS).splitlines() if line and not line.startswith("#")]
    assert [row.name for row in rows()] == words


def test_no_row_escapes_the_parser() -> None:
    """A malformed row would be checked by nobody: every table line is a row, a head or a rule."""
    lines = [line for line in text_of(PAGE).splitlines() if line.startswith("|")]
    heads = [line for line in lines if line.startswith(("| Of the brief |", "|---"))]
    assert len(lines) - len(heads) == len(rows()) > 100


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_row_holds(row: Row) -> None:
    """A row claims only what is there: import its symbols, look for its paths, tests and decisions."""
    for symbol in row.symbols():
        resolve(symbol)
    for path in [*row.paths(), *(f"docs/{page}" for page in row.decisions())]:
        assert (ROOT / path).exists(), path
    for reference in row.test_references():
        path, _, function = reference.partition("::")
        assert (ROOT / path).exists(), path
        if function:
            assert re.search(rf"^\s*def {re.escape(function)}\(", text_of(Path(path)), re.MULTILINE), reference


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_row_says_enough(row: Row) -> None:
    """What exists has something and a test, what is replaced has a decision, what is planned has a known theme."""
    if row.state == "exists":
        assert row.symbols() or row.paths()
        assert row.test_references()
    elif row.state == "replaced":
        assert row.decisions()
    else:
        theme = re.match(r"planned: (\w+)", row.here)
        assert theme
        assert theme[1] in themes()
