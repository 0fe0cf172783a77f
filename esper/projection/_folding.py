"""The loop that every fold shares: read a little, commit a lot, and never past a doubt."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

import duckdb

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import OperationFailed
from esper.core.rng import jitter
from esper.leyline import Record
from esper.oona import Position, TopicCatalog
from esper.projection._admission import Admission, Judged
from esper.projection._continuity import begin, check_positions, check_topic_ids
from esper.projection._file import ProjectionFile
from esper.projection._source import LogState, RecordSource

_log = logging.getLogger("esper.projection.folding")

#: Small reads are the fast ones (3.1M records per CPU-second at 500, 0.9M at 10,000) ...
READ_RECORDS: Final = 500
#: ... and large commits: a commit costs 5 ms whatever it holds.
COMMIT_RECORDS: Final = 20_000
COMMIT_BYTES: Final = 32 * 1024 * 1024
_MEMORY_TRIES: Final = 5
_MEMORY_WAIT_SECONDS: Final = 0.2


class LetterBox(Protocol):
    """Where records go that must not be believed, by reference."""

    def set_aside(self, judged: Sequence[Judged]) -> None:
        """Return once the log holds a letter for each."""


class Folding:
    """Folds one source into the files of several projections; one thread at a time."""

    def __init__(
        self,
        *,
        source: RecordSource,
        admission: Admission,
        files: Mapping[str, ProjectionFile],
        catalog: TopicCatalog,
        letters: LetterBox | None = None,
        until: Mapping[str, Mapping[Position, int]] | None = None,
        relieve: Callable[[], int] = lambda: 0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Fold into `files`, by projection name; the mapping may change between two steps, followed by `start`.

        `letters` takes bad records (None: nobody is told, as in a rebuild). `until` ends each projection
        before an offset. `relieve` is called when memory ran out, and returns how much it could end.
        """
        self._source = source
        self._admission = admission
        self._files = files
        self._catalog = catalog
        self._letters = letters
        self._until = until or {}
        self._relieve = relieve
        self._clock = clock
        self._pending: list[Record] = []
        self._pending_bytes = 0

    def start(self) -> LogState:
        """Begin files that are new, check that the log continues the others, and stand where they end.

        Raises:
            IntegrityError: a topic was replaced, or records are missing that were not folded yet.
        """
        self._drop_pending()
        state = self._source.state()
        ids = {topic: found.topic_id for (topic, _), found in state.items()}
        for name, file in self._files.items():
            if not file.progress:
                file.begin(begin(name, file.definition.topics, state, self._catalog))
            check_topic_ids(name, file.progress.values(), ids)
            check_positions(name, file.progress.values(), state)
        self._source.seek(self._positions())
        return state

    def step(self, timeout: float) -> int:
        """Read once, and commit when there is enough or nothing more; return the number of records committed.

        Raises:
            IntegrityError: a topic was replaced, or the log no longer holds a position.
            BrokerUnavailable: no broker answered for the retry time.
        """
        records = self._source.read(0 if self._pending else timeout, READ_RECORDS)
        self._pending += records
        self._pending_bytes += sum(len(record.value or b"") for record in records)
        due = len(self._pending) >= COMMIT_RECORDS or self._pending_bytes >= COMMIT_BYTES
        return self.commit() if self._pending and (due or not records) else 0

    def commit(self) -> int:
        """Fold what was read and not yet committed; return how many records that were."""
        if not self._pending:
            return 0
        batch = self._admission.admit(self._pending)
        # After the read, before the commit: records of a topic that was made again are never committed.
        ids = self._source.topic_ids()
        for name, file in self._files.items():
            check_topic_ids(name, file.progress.values(), ids)
        bad = [one for one in batch.judged if one.bad is not None]
        if bad and self._letters is not None:
            self._letters.set_aside(bad)
        for name, file in self._files.items():
            self._with_memory(name, partial(file.fold, batch, until=self._until.get(name)))
        count = len(self._pending)
        self._drop_pending()
        return count

    def reached(self, ends: Mapping[Position, int]) -> bool:
        """Return whether everything before `ends` was read and committed."""
        if self._pending:
            return False
        positions = self._source.positions()
        return all(positions.get(place, end) >= end for place, end in ends.items())

    def _drop_pending(self) -> None:
        self._pending, self._pending_bytes = [], 0

    def _positions(self) -> dict[Position, int]:
        """Return the lowest offset of each partition that some projection still needs."""
        positions: dict[Position, int] = {}
        for file in self._files.values():
            for place, one in file.progress.items():
                positions[place] = min(positions.get(place, one.next_offset), one.next_offset)
        return positions

    def _with_memory(self, name: str, fold: Callable[[], int]) -> None:
        """Fold, making room by ending queries when there is too little: the fold goes first."""
        for attempt in range(1, _MEMORY_TRIES + 1):
            try:
                fold()
            except duckdb.OutOfMemoryException as error:
                ended = self._relieve()
                _log.warning("projection %s ran out of memory (try %d); ended %d queries", name, attempt, ended)
                if attempt == _MEMORY_TRIES:
                    raise OperationFailed(
                        f"projection {name} cannot be folded",
                        cause=" ".join(str(error).split()),
                        next_step="Set ESPER_SQL_MEMORY_LIMIT higher",
                    ) from error
                self._clock.sleep(jitter(_MEMORY_WAIT_SECONDS))
            else:
                return
