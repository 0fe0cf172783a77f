"""What the tests of projections share: shipped definitions, and files on disk fed from a log in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from esper.core.settings import Settings
from esper.oona import Position
from esper.projection import Definition, load_definitions
from esper.projection.columnar import ArrowDecoder
from esper.projection.files._bulk import BulkFile
from esper.projection.files._contents import Contents, read_contents
from esper.projection.files._file import ProjectionFile
from esper.projection.intake._admission import Admission
from esper.projection.intake._folding import Folding
from esper.projection.intake._intake import LocalIntake
from esper.projection.records._judged import Judged
from esper.projection.sql._database import Database
from tests.projection.log import TOPICS, Log


@pytest.fixture(scope="session")
def definitions() -> tuple[Definition, ...]:
    """The shipped projections."""
    return load_definitions(Settings(_env_file=None), TOPICS)


@dataclass
class Letters:
    """Keeps what was set aside."""

    judged: list[Judged] = field(default_factory=list)

    def set_aside(self, judged: list[Judged]) -> None:
        """Remember them."""
        self.judged += judged


@dataclass
class Workbench:
    """Projection files in a folder, and the loop that folds a log in memory into them."""

    folder: Path
    definitions: tuple[Definition, ...]
    log: Log
    database: Database
    files: dict[str, ProjectionFile]
    letters: Letters
    folding: Folding

    def fold(self) -> int:
        """Fold all that the log holds; return the number of records."""
        state = self.folding.start()
        ends = {place: one.high for place, one in state.items()}
        total = 0
        while not self.folding.reached(ends):  # ends with the log
            total += self.folding.step(0)
        return total

    def contents(self, name: str) -> Contents:
        """Return what a projection holds."""
        return read_contents(self.database, next(one for one in self.definitions if one.name == name))

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        """Return what any SQL gives, unguarded."""
        cursor = self.database.cursor()
        try:
            return cursor.execute(sql).fetchall()
        finally:
            cursor.close()

    def close(self) -> None:
        """Close files and database."""
        for file in self.files.values():
            file.close()
        self.database.close()


OpenWorkbench = Callable[..., Workbench]


@pytest.fixture
def open_workbench(tmp_path: Path, definitions: tuple[Definition, ...]) -> Iterator[OpenWorkbench]:
    """Return a function that opens a folder's projections over a log; the same folder again continues it.

    With `bulk` the files are those of a rebuild, which commit after so many records.
    """
    opened: list[Workbench] = []

    def build(
        log: Log,
        folder: str = "live",
        *,
        until: Mapping[str, Mapping[Position, int]] | None = None,
        bulk: int | None = None,
    ) -> Workbench:
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        database = Database(path, memory_limit="512MB")

        def file(one: Definition) -> ProjectionFile:
            where = path / f"{one.name}.duckdb"
            if bulk is None:
                return ProjectionFile(database, one, where)
            return BulkFile(database, one, where, holds=log.holds, records_max=bulk)

        files = {one.name: file(one) for one in definitions}
        for one in definitions:
            database.expose(one.name, one.relations)
        admission = Admission(
            keyring=log.keyring,
            allowed=TOPICS.allowed,
            wanted={kind for one in definitions for kind in one.types},
            decoder=ArrowDecoder(),
        )
        letters = Letters()
        folding = Folding(
            intake=LocalIntake(log.source, admission), files=files, catalog=TOPICS, letters=letters, until=until
        )
        opened.append(Workbench(path, definitions, log, database, files, letters, folding))
        return opened[-1]

    yield build
    for one in opened:
        one.database.close()
