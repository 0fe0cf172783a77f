"""Files that one process fills beside those that count: a rebuild, a check against the log, what a rollback lacks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from esper.core.interpreter import tuned_for_throughput
from esper.oona import Fabric, Position
from esper.projection._past import log_source
from esper.projection.columnar import ArrowDecoder
from esper.projection.definitions._definition import Definition
from esper.projection.files._accounts import log_holds
from esper.projection.files._bulk import BulkFile
from esper.projection.files._file import ProjectionFile
from esper.projection.intake._admission import Admission
from esper.projection.intake._folding import Folding, LetterBox
from esper.projection.intake._intake import REBUILD_RECORDS, LocalIntake
from esper.projection.intake._parallel import ParallelIntake
from esper.projection.sql._database import Database

STEP_SECONDS: Final = 0.1
#: A reader takes a second or two to start; by then one process has folded so many records.
_RECORDS_PER_READER: Final = 200_000
_READERS_MAX: Final = 8
#: One for the process that writes, one for the broker.
_CORES_TAKEN: Final = 2


def admission(fabric: Fabric, definitions: Iterable[Definition]) -> Admission:
    """Return what verifies and decodes the records of these projections."""
    return Admission(
        keyring=fabric.keyring,
        allowed=fabric.topics.allowed,
        wanted={type_name for one in definitions for type_name in one.types},
        decoder=ArrowDecoder(),
    )


def read_topics(definitions: Iterable[Definition]) -> list[str]:
    """Return the topics that some projection reads."""
    return sorted({topic for one in definitions for topic in one.topics})


def log_ends(fabric: Fabric, definitions: Iterable[Definition]) -> Mapping[Position, int]:
    """Return the offset after the last record of every partition that some projection reads."""
    places = [place for topic in read_topics(definitions) for place in fabric.topics.partitions(topic)]
    return {place: high for place, (_, high) in fabric.cluster.watermarks(places).items()}


def readers_for(records: int) -> int:
    """Return how many processes are to read so many records: as many as there are cores beside writer and broker.

    On two cores that is none: one process, which commits in a thread of its own, was faster there than two
    (benchmarks/results/replay.json).
    """
    return max(0, min((os.cpu_count() or 1) - _CORES_TAKEN, records // _RECORDS_PER_READER, _READERS_MAX))


@contextmanager
def building(
    fabric: Fabric,
    definitions: tuple[Definition, ...],
    paths: Mapping[str, Path],
    *,
    until: Mapping[str, Mapping[Position, int]] | None = None,
    letters: LetterBox | None = None,
    readers: int = 0,
    cold: bool = False,
) -> Iterator[tuple[Mapping[str, ProjectionFile], Folding]]:
    """Open files at `paths`, by projection name, and the loop that fills them, each up to `until`.

    Nobody else may have them open. They are new, or go on where they end. So many `readers`, processes of their own,
    read the log for this one; with none it does so itself. With `cold` what is sealed is read from the archive, also
    where the log still holds it.
    """
    folder = next(iter(paths.values())).parent
    spill = folder / f"building-{os.getpid()}-spill"
    database = Database(
        folder,
        memory_limit=fabric.settings.rebuild_memory_limit,
        # A core for each process that reads, this one's own reading included.
        threads=max(1, (os.cpu_count() or 1) - max(1, readers)),
        setting="ESPER_REBUILD_MEMORY_LIMIT",
        # What is being written cannot be ended to make room, as a query can.
        spill=spill,
    )
    intake = (
        LocalIntake(
            log_source(fabric, read_topics(definitions), cold=cold),
            admission(fabric, definitions),
            records_max=REBUILD_RECORDS,
        )
        if not readers
        else ParallelIntake(
            fabric,
            read_topics(definitions),
            wanted={kind for one in definitions for kind in one.types},
            processes=readers,
            records_max=REBUILD_RECORDS,
            cold=cold,
        )
    )
    files: dict[str, ProjectionFile] = {}
    folding = Folding(intake=intake, files=files, catalog=fabric.topics, letters=letters, until=until)
    try:
        for one in definitions:
            files[one.name] = BulkFile(database, one, paths[one.name], holds=log_holds(fabric))
        with tuned_for_throughput():
            yield files, folding
        folding.close()
        for file in files.values():
            file.close()
    finally:
        folding.close()
        intake.close()
        database.close()
        shutil.rmtree(spill, ignore_errors=True)


def fold_up_to(
    fabric: Fabric,
    definition: Definition,
    path: Path,
    ends: Mapping[Position, int],
    *,
    letters: LetterBox | None = None,
) -> dict[Position, int]:
    """Fold a closed file on, exactly up to `ends` where it is not beyond them; return where it ends then.

    Raises:
        UnreadableFile: it is damaged or not of this version.
        IntegrityError: the log is not the one that it was folded from.
    """
    with building(fabric, (definition,), {definition.name: path}, until={definition.name: ends}, letters=letters) as (
        files,
        folding,
    ):
        folding.start()
        while not folding.reached(ends):  # ends with the log up to there; a broker that is away raises
            folding.step(STEP_SECONDS)
        return {place: one.next_offset for place, one in files[definition.name].progress.items()}
