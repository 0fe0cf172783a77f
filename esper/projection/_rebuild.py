"""Bringing projections up to the end of the log, and building them again from its beginning."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb

from esper.core.clock import SYSTEM_CLOCK, Clock, Deadline
from esper.core.errors import Busy, NotReadyError
from esper.core.rng import jitter
from esper.oona import Fabric, Position
from esper.projection.building._building import STEP_SECONDS, building, fold_up_to, log_ends, read_topics, readers_for
from esper.projection.definitions._definition import Definition, choose, load_definitions
from esper.projection.definitions._folder import ProjectionFolder, remove
from esper.projection.definitions._versions import (
    keep_definition,
    readable_definitions,
    remove_unused,
    serving_definitions,
)
from esper.projection.files._fence import Fence
from esper.projection.files._file import ProjectionFile
from esper.projection.records._letters import DeadLetters
from esper.projection.serving._control import ProjectorClient, ProjectorGone, find_projector
from esper.projection.serving._live import Switched, kept_version, switched
from esper.projection.serving._projections import held
from esper.projection.serving._projector import opened
from esper.projection.sql._database import fault, is_held

_log = logging.getLogger("esper.projection.rebuild")


@dataclass(frozen=True)
class Built:
    """How far a new file of projection `name` is: records read, offsets left, seconds since it was begun."""

    name: str
    records: int
    left: int
    seconds: float

    @property
    def events_per_second(self) -> float:
        """The mean rate so far."""
        return self.records / self.seconds if self.seconds > 0 else 0.0


#: Called for each file after each commit.
ProgressReport = Callable[[Built], None]

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
    folder = ProjectionFolder(fabric.home.projections)
    definitions = serving_definitions(fabric.settings, fabric.topics, folder)
    ends = log_ends(fabric, definitions)
    deadline = Deadline(seconds)
    while True:  # ends with the log, or at the deadline
        client = find_projector(fabric.home)
        try:
            if client is None:
                return _fold_here(fabric, ends)
            if client.reached(ends):
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


def _fold_here(fabric: Fabric, ends: Mapping[Position, int]) -> CaughtUp:
    folder = ProjectionFolder(fabric.home.projections)
    with folder.writing(seconds=_WRITER_SECONDS), opened(folder, fabric) as live:
        live.folding.start()
        records = 0
        while not live.folding.reached(ends):  # ends with the log; a broker that is away raises
            records += live.folding.step(STEP_SECONDS)
        return CaughtUp(records)


def replay(
    fabric: Fabric, names: Iterable[str] | None = None, *, progress: ProgressReport | None = None
) -> list[dict[str, Any]]:
    """Build projections again from the first record of the log, and put them in the place of the current ones.

    Members may run: queries see the old files until each new one takes over, at the offsets that the old one has
    reached. The old files are kept for `roll_back`. Returns for each projection `{name, version, pinned, previous,
    switch_seconds, positions, records, seconds, events_per_second}`: versions now and before (null: none), how long
    queries waited, the next offset of each partition, and what the build took. Nothing is written to the log.

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
        rows = _build(fabric, folder, definitions, built, progress or _silent)
        return [{**_take_over(fabric, folder, one, built[one.name]).as_dict(), **rows[one.name]} for one in definitions]
    finally:
        for path in built.values():
            remove(path)


def roll_back(fabric: Fabric, name: str) -> dict[str, Any]:
    """Let the file count again that did before the last rebuild, folded as far as the present one, which is kept now.

    Members may run, as for `replay`. A version that differs from the projection's folder stays until the next rebuild
    (`pinned`). Returns `{name, version, pinned, previous, switch_seconds, positions}` as `replay` does.

    Raises:
        UsageError: there is no projection of that name.
        NotReadyError: there is no kept file, or its version cannot be folded any more.
        Busy: a query still reads the kept file, or another process writes the projections and is no projector.
    """
    folder = ProjectionFolder(fabric.home.projections)

    def here() -> Switched:
        kept, definition, pinned = kept_version(fabric, folder, name)
        return _promoted(fabric, folder, definition, kept.path, pinned=pinned)

    _bring_up(fabric, folder, name)
    return _as_writer(fabric, folder, lambda client: client.roll_back(name), here).as_dict()


def _bring_up(fabric: Fabric, folder: ProjectionFolder, name: str) -> None:
    """Fold the kept file up to the log's end in this process, so that the projector has little left to do."""
    kept, definition, _ = kept_version(fabric, folder, name)
    try:
        fold_up_to(fabric, definition, kept.path, log_ends(fabric, [definition]))
    except duckdb.Error as error:
        if not is_held(error):
            raise fault(kept.path, error) from error
        raise held(kept.path, error) from error


def _build(
    fabric: Fabric,
    folder: ProjectionFolder,
    definitions: tuple[Definition, ...],
    paths: Mapping[str, Path],
    progress: ProgressReport,
    *,
    clock: Clock = SYSTEM_CLOCK,
) -> dict[str, dict[str, Any]]:
    """Fold the whole log into new files; return what each one took, by name."""
    ends = log_ends(fabric, definitions)
    begun = clock.monotonic()
    letters, readers = _letters(fabric, folder, definitions), readers_for(sum(ends.values()))
    with building(fabric, definitions, paths, letters=letters, readers=readers) as (files, folding):
        folding.start()
        while not folding.reached(ends):  # ends with the log; a broker that is away raises
            if folding.step(STEP_SECONDS):
                for name, file in files.items():
                    progress(_report(name, file, ends, clock.monotonic() - begun))
        seconds = clock.monotonic() - begun
        return {name: _row(_report(name, file, ends, seconds)) for name, file in files.items()}


def _letters(fabric: Fabric, folder: ProjectionFolder, definitions: Iterable[Definition]) -> DeadLetters | None:
    """Return where a build tells of bad records: the projections that count told of theirs, and told once is enough."""
    told = {
        topic
        for one in readable_definitions(fabric.settings, fabric.topics, folder)
        if folder.live(one.name) is not None
        for topic in one.topics
    }
    return None if told.issuperset(read_topics(definitions)) else DeadLetters(fabric)


def _take_over(fabric: Fabric, folder: ProjectionFolder, definition: Definition, built: Path) -> Switched:
    """Make `built` the file that counts."""
    keep_definition(folder, definition)
    return _as_writer(
        fabric,
        folder,
        lambda client: client.adopt(definition.name, definition.version, built.name),
        lambda: _promoted(fabric, folder, definition, built, pinned=False),
    )


def _as_writer(
    fabric: Fabric,
    folder: ProjectionFolder,
    ask: Callable[[ProjectorClient], dict[str, Any]],
    here: Callable[[], Switched],
) -> Switched:
    """Have the projector do it when one runs, else do it here as the only writer; try again while one takes over."""
    deadline = Deadline(_CATCH_UP_SECONDS)
    while True:  # ends with an answer, or at the deadline
        client = find_projector(fabric.home)
        try:
            if client is not None:
                return Switched(**ask(client))
            with folder.writing(seconds=_WRITER_SECONDS):
                return here()
        except (ProjectorGone, Busy):
            if deadline.expired:
                raise
        SYSTEM_CLOCK.sleep(jitter(_RETRY_SECONDS))


def _promoted(
    fabric: Fabric, folder: ProjectionFolder, definition: Definition, path: Path, *, pinned: bool
) -> Switched:
    """Fold a file up to the end of the log, beyond any that counts, and let it count."""
    fence = Fence(folder.path)
    ends = fold_up_to(fabric, definition, path, log_ends(fabric, [definition]), letters=DeadLetters(fabric))
    before = folder.live(definition.name)
    fence.check()
    folder.promote(definition, path, pinned=pinned)
    keep_definition(folder, definition)
    folder.remove_older(definition.name)
    remove_unused(folder)
    return switched(definition, before, ends, pinned=pinned, seconds=0.0)


def _report(name: str, file: ProjectionFile, ends: Mapping[Position, int], seconds: float) -> Built:
    read = sum(one.read for one in file.progress.values())
    left = sum(max(0, ends[one.place] - one.next_offset) for one in file.progress.values() if one.place in ends)
    return Built(name, read, left, seconds)


def _row(built: Built) -> dict[str, Any]:
    return {"records": built.records, "seconds": built.seconds, "events_per_second": built.events_per_second}


def _silent(_: Built) -> None:
    """Tell nobody."""
