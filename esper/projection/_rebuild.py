"""Bringing projections up to the end of the log, and building them again from its beginning."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from esper.core.clock import SYSTEM_CLOCK, Clock, Deadline
from esper.core.errors import Busy, NotReadyError
from esper.core.rng import jitter
from esper.oona import Fabric, Position
from esper.projection._control import ProjectorClient, ProjectorGone, find_projector
from esper.projection._database import Database
from esper.projection._definition import Definition, choose, load_definitions
from esper.projection._file import ProjectionFile
from esper.projection._folder import ProjectionFolder, remove
from esper.projection._folding import Folding
from esper.projection._projector import admission, opened
from esper.projection._source import KafkaSource

_log = logging.getLogger("esper.projection.rebuild")

#: Called with a projection's name, the number of records it has read and the rate, after each commit.
ProgressReport = Callable[[str, int, float], None]

_STEP_SECONDS: Final = 0.1
_WRITER_SECONDS: Final = 5.0
_CATCH_UP_SECONDS: Final = 600.0
_RETRY_SECONDS: Final = 0.05


@dataclass(frozen=True)
class CaughtUp:
    """How many records were folded here; none where a projector did it."""

    records: int


def catch_up(fabric: Fabric, *, seconds: float = _CATCH_UP_SECONDS) -> CaughtUp:
    """Return once every projection holds all that the log held at the call.

    Waits for the projector when one runs; otherwise folds in this process, as the only writer.

    Raises:
        IntegrityError: the log is not the one that was folded.
        NotReadyError: the end was not reached within `seconds`.
        BrokerUnavailable: no broker answered in time.
    """
    definitions = load_definitions(fabric.settings, fabric.topics)
    ends = log_ends(fabric, definitions)
    deadline = Deadline(seconds)
    while True:  # ends with the log, or at the deadline
        client = find_projector(fabric.home)
        try:
            if client is None:
                return _fold_here(fabric, definitions, ends)
            if _has_reached(client, definitions, ends):
                return CaughtUp(0)
        except (ProjectorGone, Busy) as error:
            _log.debug("catching up again: %s", error)
        if deadline.expired:
            raise NotReadyError(
                "the projections did not reach the end of the log",
                cause=f"the projector needs longer than {seconds:g} seconds",
                next_step="`esper projections list` shows how far it is",
            )
        SYSTEM_CLOCK.sleep(jitter(_RETRY_SECONDS))


def log_ends(fabric: Fabric, definitions: Iterable[Definition]) -> Mapping[Position, int]:
    """Return the offset after the last record of every partition that some projection reads."""
    topics = sorted({topic for one in definitions for topic in one.topics})
    places = [place for topic in topics for place in fabric.topics.partitions(topic)]
    return {place: high for place, (_, high) in fabric.cluster.watermarks(places).items()}


def _has_reached(client: ProjectorClient, definitions: Iterable[Definition], ends: Mapping[Position, int]) -> bool:
    progress = client.progress()
    return all(
        one.next_offset >= ends[one.place]
        for definition in definitions
        for one in progress.get(definition.name, [])
        if one.place in ends
    )


def _fold_here(fabric: Fabric, definitions: tuple[Definition, ...], ends: Mapping[Position, int]) -> CaughtUp:
    folder = ProjectionFolder(fabric.home.projections)
    with folder.writing(seconds=_WRITER_SECONDS), opened(folder, definitions, fabric) as (_, folding):
        folding.start()
        records = 0
        while not folding.reached(ends):  # ends with the log; a broker that is away raises
            records += folding.step(_STEP_SECONDS)
        return CaughtUp(records)


def replay(
    fabric: Fabric, names: Iterable[str] | None = None, *, progress: ProgressReport | None = None
) -> list[dict[str, Any]]:
    """Build projections again from the first record of the log, and put them in the place of the current ones.

    Members may run: queries see the old file until the new one takes over. Returns for each projection
    `{name, version, records, seconds, events_per_second}`. Nothing is written to the log.

    Raises:
        UsageError: there is no projection of that name.
        IntegrityError: the beginning of a topic that keeps everything is missing.
        Busy: another process writes the projections and is no projector.
    """
    definitions = choose(load_definitions(fabric.settings, fabric.topics), names)
    folder = ProjectionFolder(fabric.home.projections)
    folder.path.mkdir(parents=True, exist_ok=True)
    built = {one.name: folder.building(one) for one in definitions}
    try:
        rows = _build(fabric, definitions, built, progress)
        for definition in definitions:
            _take_over(fabric, folder, definition, built[definition.name])
        return rows
    finally:
        for path in built.values():
            remove(path)


def _build(
    fabric: Fabric,
    definitions: tuple[Definition, ...],
    paths: Mapping[str, Path],
    progress: ProgressReport | None,
    *,
    clock: Clock = SYSTEM_CLOCK,
) -> list[dict[str, Any]]:
    """Fold the whole log into new files; return what each one took."""
    ends = log_ends(fabric, definitions)
    begun = clock.monotonic()
    with building(fabric, definitions, paths) as (files, folding):
        folding.start()
        while not folding.reached(ends):  # ends with the log; a broker that is away raises
            if folding.step(_STEP_SECONDS) and progress is not None:
                seconds = clock.monotonic() - begun
                for name, file in files.items():
                    progress(name, _records(file), _records(file) / seconds)
        seconds = clock.monotonic() - begun
        return [_row(file, seconds) for file in files.values()]


@contextmanager
def building(
    fabric: Fabric,
    definitions: tuple[Definition, ...],
    paths: Mapping[str, Path],
    *,
    until: Mapping[str, Mapping[Position, int]] | None = None,
) -> Iterator[tuple[Mapping[str, ProjectionFile], Folding]]:
    """Open new files at `paths`, by projection name, and the loop that fills them, each up to `until`."""
    folder = next(iter(paths.values())).parent
    database = Database(folder, memory_limit=fabric.settings.sql_memory_limit, rebuilding=True)
    source = KafkaSource(fabric, sorted({topic for one in definitions for topic in one.topics}))
    files: dict[str, ProjectionFile] = {}
    try:
        for one in definitions:
            files[one.name] = ProjectionFile(database, one, paths[one.name])
        yield (
            files,
            Folding(
                source=source,
                admission=admission(fabric, definitions),
                files=files,
                catalog=fabric.topics,
                until=until,
            ),
        )
        for file in files.values():
            file.close()
    finally:
        source.close()
        database.close()


def _take_over(fabric: Fabric, folder: ProjectionFolder, definition: Definition, built: Path) -> None:
    """Make `built` the current file: through the projector when one runs, else as the only writer."""
    deadline = Deadline(_CATCH_UP_SECONDS)
    while True:  # ends with the exchange, or at the deadline
        client = find_projector(fabric.home)
        try:
            if client is not None:
                client.adopt(definition.name, built.name)
                return
            with folder.writing(seconds=_WRITER_SECONDS):
                built.rename(folder.next(definition))
                folder.remove_older(definition)
                return
        except (ProjectorGone, Busy):
            if deadline.expired or not built.exists():
                raise
        SYSTEM_CLOCK.sleep(jitter(_RETRY_SECONDS))


def _records(file: ProjectionFile) -> int:
    return sum(one.read for one in file.progress.values())


def _row(file: ProjectionFile, seconds: float) -> dict[str, Any]:
    records = _records(file)
    return {
        "name": file.definition.name,
        "version": file.definition.version,
        "records": records,
        "seconds": seconds,
        "events_per_second": records / seconds if seconds > 0 else 0.0,
    }
