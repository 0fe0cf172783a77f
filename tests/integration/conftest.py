"""One home whose members serve, for the tests that only ask; tests that break things make their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.driver import Esper


@pytest.fixture(scope="package")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Esper]:
    """A home with a real broker and all members running."""
    with own_home(tmp_path_factory.mktemp("serving")) as esper, esper.serving():
        yield esper


@pytest.fixture
def esper(tmp_path: Path) -> Iterator[Esper]:
    """A home of the test's own with a real broker, no member running."""
    with own_home(tmp_path) as driver:
        yield driver


class own_home:
    """A home in `folder` with its broker up, and down at the end."""

    def __init__(self, folder: Path) -> None:
        self.esper = Esper(folder / "home")

    def __enter__(self) -> Esper:
        answer = self.esper("up", timeout=120)
        assert answer.code == 0, answer.stderr
        return self.esper

    def __exit__(self, *_: object) -> None:
        self.esper("down", timeout=60)
