"""The loop that every fold shares: while one batch is committed the next is read, and never past a doubt."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Final, Protocol

import duckdb

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import OperationFailed
from esper.core.rng import jitter
from esper.oona import Position, TopicCatalog
from esper.projection.columnar import Batch
from esper.projection.files._file import ProjectionFile
from esper.projection.intake._intake import Intake
from esper.projection.records._continuity import begin, check_positions, check_topic_ids
from esper.projection.records._judged import Judged
from esper.projection.records._source import LogState

_log = logging.getLogger("esper.projection.folding")

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
        intake: Intake,
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
        self._intake = intake
        self._files = files
        self._catalog = catalog
        self._letters = letters
        self._until = until or {}
        self._relieve = relieve
        self._clock = clock
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fold")
        #: The fold that is under way, and whether anything may not be committed yet.
        self._under_way: Future[int] | None = None
        self._unsettled = False

    def start(self) -> LogState:
        """Begin files that are new, check that the log continues the others, and stand where they end.

        Raises:
            IntegrityError: a topic was replaced, or records are missing that were not folded yet.
        """
        self._settle()
        state = self._intake.state()
        ids = {topic: found.topic_id for (topic, _), found in state.items()}
        for name, file in self._files.items():
            if not file.progress:
                file.begin(begin(name, file.definition.topics, state, self._catalog))
            check_topic_ids(name, file.progress.values(), ids)
            check_positions(name, file.progress.values(), state)
        self._intake.seek(self._positions())
        return state

    def step(self, timeout: float) -> int:
        """Read on, and commit when there is enough or nothing more; return the number of records committed.

        Where the log holds more, the commit goes on while the next step reads, and counts there.

        Raises:
            IntegrityError: a topic was replaced, or the log no longer holds a position.
            BrokerUnavailable: no broker answered for the retry time.
        """
        taken = self._intake.take(0 if self._under_way and not self._intake.pending else timeout)
        if taken is not None:
            return self._submit(taken.batch) + (0 if taken.more else self._settle())
        return 0 if self._intake.pending else self._settle()

    def commit(self) -> int:
        """Fold what was read and not yet committed; return how many records that were."""
        taken = self._intake.flush()
        return (self._submit(taken.batch) if taken is not None else 0) + self._settle()

    def reached(self, ends: Mapping[Position, int]) -> bool:
        """Return whether everything before `ends` was read and committed."""
        if self._intake.pending or self._unsettled:
            return False
        positions = self._intake.positions()
        return all(positions.get(place, end) >= end for place, end in ends.items())

    def close(self) -> None:
        """Wait until nobody writes into the files any more; a commit that failed by then is nobody's business."""
        self._writer.shutdown(wait=True)

    def _submit(self, batch: Batch) -> int:
        """Begin to commit a batch once the one before is committed; return how many records that had."""
        # After the read, before the commit: records of a topic that was made again are never committed.
        ids = self._intake.topic_ids()
        for name, file in self._files.items():
            check_topic_ids(name, file.progress.values(), ids)
        if batch.bad and self._letters is not None:
            self._letters.set_aside([batch.bad[index] for index in sorted(batch.bad)])
        before = self._wait()
        self._unsettled = True
        self._under_way = self._writer.submit(self._fold, batch)
        return before

    def _wait(self) -> int:
        """Wait for the fold that is under way; return how many records it had; raises what it raised."""
        under_way, self._under_way = self._under_way, None
        return 0 if under_way is None else under_way.result()

    def _settle(self) -> int:
        """Return what `_wait` does once everything that was folded is committed."""
        records = self._wait()
        if self._unsettled:
            for file in self._files.values():
                file.settle()
            self._unsettled = False
        return records

    def _fold(self, batch: Batch) -> int:
        for name, file in list(self._files.items()):
            self._with_memory(name, partial(file.fold, batch, until=self._until.get(name)))
        return len(batch)

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
