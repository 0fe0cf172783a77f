"""A projection's file that commits only as its home's writer, and only what accounts for every record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from esper.oona import Position
from esper.projection.definitions._definition import Definition
from esper.projection.files._accounts import Holds, check_accounts
from esper.projection.files._fence import Fence
from esper.projection.files._file import ProjectionFile
from esper.projection.records._ledger import Progress
from esper.projection.sql._database import Database

if TYPE_CHECKING:
    from esper.projection.columnar import Batch


class CommittedFile(ProjectionFile):
    """A projection file whose every commit is checked from inside its transaction (`_fence`, `_accounts`)."""

    def __init__(
        self, database: Database, definition: Definition, path: Path, *, holds: Holds, fence: Fence | None = None
    ) -> None:
        """Attach as `ProjectionFile` does; `holds` asks the log. No fence: nobody else knows of the file."""
        super().__init__(database, definition, path)
        self._holds = holds
        self._fence = fence
        self._noted = False
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def begin(self, progress: Iterable[Progress]) -> None:
        """Begin; raises Fenced when another process became the writer."""
        with self._held():
            super().begin(progress)

    def fold(self, batch: Batch, *, until: Mapping[Position, int] | None = None) -> int:
        """Fold as `ProjectionFile` does, or change nothing.

        Raises:
            Fenced: another process became the writer.
            IntegrityError: a record of the log would have been skipped, or the counts do not add up.
        """
        with self._held():
            return super().fold(batch, until=until)

    def _before_commit(self) -> None:
        super()._before_commit()
        check_accounts(self._cursor, self.definition.name, self._committed(), self._holds)
        if self._fence is None:
            return
        if not self._noted:
            self._cursor.execute("update esper.meta set generation = $1", [self._fence.generation])
        self._fence.check()
        self._noted = True

    def _committed(self) -> Mapping[Position, Progress]:
        """Return what the file held before the transaction."""
        return self._progress

    def _prepare(self) -> None:
        with self._guarded():
            [(last,)] = self._cursor.execute("select coalesce(max(generation), 0) from esper.meta").fetchall()
        if self._fence is not None and last > self._fence.generation:
            # The folder's generation was lost or set back, the file's was not.
            self._fence.raise_above(last)

    @contextmanager
    def _held(self) -> Iterator[None]:
        if self._fence is None:
            yield
            return
        with self._fence.held():
            yield
