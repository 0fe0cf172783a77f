"""A projection's file that nobody asks while it is built, so that it may commit seldom.

DuckDB writes what a large transaction appends into the file at once, a row group at a time and compressed. What a
small one appends it writes three times: into memory, into its write-ahead log, and later into the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import duckdb

from esper.core.errors import OperationFailed
from esper.oona import Position
from esper.projection.definitions._definition import Definition
from esper.projection.files._accounts import Holds
from esper.projection.files._committed import CommittedFile
from esper.projection.records._ledger import Progress
from esper.projection.sql._database import Database, RollbackFailed, begin_transaction, rollback

if TYPE_CHECKING:
    from esper.projection.columnar import Batch

#: A row group holds 122,880 rows, and what a commit leaves in a part of one is written again by the next.
RECORDS_MAX: Final = 250_000
#: Until a row group is full its rows stay in memory, whatever they hold.
BYTES_MAX: Final = 256 * 1024 * 1024


class BulkFile(CommittedFile):
    """A projection file with many folds in a transaction; after one that failed it is of no use any more.

    A fold or a settling for which memory is too short raises OperationFailed: here no query can be ended to make room.
    """

    def __init__(
        self,
        database: Database,
        definition: Definition,
        path: Path,
        *,
        holds: Holds,
        records_max: int = RECORDS_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        """Attach as `CommittedFile` does; commit after so many records or bytes of columns, and when told to settle."""
        super().__init__(database, definition, path, holds=holds)
        self._records_max = records_max
        self._bytes_max = bytes_max
        #: Records of the open transaction, and bytes of their columns; no records: there is none.
        self._records = 0
        self._bytes = 0
        #: What was committed last.
        self._settled = self._progress
        self._failed = False

    def begin(self, progress: Iterable[Progress]) -> None:
        """Write where the fold begins."""
        super().begin(progress)
        self._settled = self._progress

    def settle(self) -> None:
        """Commit what was folded and is not committed yet; raises as `fold`."""
        if self._records:
            with self._guarded(), self._whole():
                self._commit()

    def _fold(self, batch: Batch, until: Mapping[Position, int]) -> int:
        with self._whole():
            indices = self._unread(batch, until)
            if not len(indices):
                return 0
            if not self._records:
                begin_transaction(self._cursor)
            self._records += len(indices)
            self._bytes += sum(table.nbytes for table in batch.rows.values())
            self._advance(self._insert(batch, indices))
            if self._records >= self._records_max or self._bytes >= self._bytes_max:
                self._commit()
            return len(indices)

    def _commit(self) -> None:
        self._write_progress([one for place, one in self._progress.items() if one != self._settled[place]])
        self._before_commit()
        self._cursor.execute("commit")
        self._records, self._bytes, self._settled = 0, 0, self._progress

    def _committed(self) -> Mapping[Position, Progress]:
        return self._settled

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Let nothing follow what failed: it would stand behind a gap."""
        assert not self._failed, "a bulk file that failed is built anew"
        try:
            yield
        except BaseException as error:
            self._failed = True
            with suppress(RollbackFailed):  # The file is thrown away as it is.
                rollback(self._cursor)
            if isinstance(error, duckdb.OutOfMemoryException):
                raise OperationFailed(
                    f"projection {self.definition.name} cannot be built",
                    cause=" ".join(str(error).split()),
                    next_step="Set ESPER_REBUILD_MEMORY_LIMIT higher",
                ) from error
            raise
