"""Whether live projections are what the log says: built again beside them, and compared table by table."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from esper.core.errors import IntegrityError, NotReadyError
from esper.oona import Fabric, Position, TopicCatalog
from esper.projection._past import log_source
from esper.projection._query import through_projector_or_files
from esper.projection.building._building import STEP_SECONDS, building, readers_for
from esper.projection.definitions._definition import Definition, choose, load_definitions
from esper.projection.definitions._folder import ProjectionFolder
from esper.projection.definitions._versions import definition_of, readable_definitions
from esper.projection.files._contents import PROGRESS, Contents, TableContent, read_contents, read_digests
from esper.projection.files._differences import differing_progress, differing_rows, topic_of_table
from esper.projection.records._continuity import check_positions, check_topic_ids
from esper.projection.sql._database import Database

AskDigests = Callable[[str, str], pa.Table]
_ABSENT: Final = TableContent(None, "absent")


def verify(fabric: Fabric, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Build projections again up to the very offsets that the live ones stand at, and compare table hashes.

    Members may run. Returns `{equal, projections: [{name, version, equal, tables: [{table, rows, live,
    replayed, equal}], differences: [{table, changed, missing, extra, rows}]}]}`: `rows` of the live table, hashes as
    32 hexadecimal digits ("unreadable" where DuckDB cannot read it). The engine's own tables `esper.progress` and
    `esper.records` are compared too, and as `esper.definitions` the text of all tables and views.

    `differences` says of each table that differs at how many places of the log its rows are others than the log
    gives, lack, or are too many, and names the first of these places: `{kind, topic, partition, offset, name}`, of
    which `name` is that of a table or view. A file that was rolled back to is compared in its own version.

    Raises:
        NotReadyError: a projection was not built yet.
        IntegrityError: the log is not the one that was folded.
        UsageError: there is no projection of that name.
    """
    folder = ProjectionFolder(fabric.home.projections)
    wanted = [one.name for one in choose(readable_definitions(fabric.settings, fabric.topics, folder), names)]
    live = through_projector_or_files(
        fabric.home,
        fabric.settings,
        ask=lambda client: client.contents(wanted),
        read=lambda projections: projections.contents([name for name in wanted if name not in projections.missing]),
    )
    definitions = _versions(fabric, folder, wanted, live)

    def ask(name: str, table: str) -> pa.Table:
        return through_projector_or_files(
            fabric.home,
            fabric.settings,
            ask=lambda client: client.digests(name, table),
            read=lambda projections: projections.digests(name, table),
        )

    projections = _compared(fabric, definitions, live, ask)
    return {"equal": all(one["equal"] for one in projections), "projections": projections}


def _versions(
    fabric: Fabric, folder: ProjectionFolder, wanted: Iterable[str], live: Iterable[Contents]
) -> tuple[Definition, ...]:
    """Return what each live file is a version of, which need not be the one of the projection's folder by now."""
    installed = load_definitions(fabric.settings, fabric.topics)
    versions = {one.name: one.version for one in live}
    for name in wanted:
        if name not in versions:
            raise NotReadyError(f"projection {name} was not built yet", next_step="Run `esper replay`")
    return tuple(definition_of(folder, name, versions[name], installed, fabric.topics) for name in wanted)


def _compared(
    fabric: Fabric, definitions: tuple[Definition, ...], live: Sequence[Contents], ask: AskDigests
) -> list[dict[str, Any]]:
    """Build the projections again in a folder that is gone afterwards, and compare."""
    until = {one.name: {p.place: p.next_offset for p in one.progress} for one in live}
    _check_log(fabric, definitions, live)
    with tempfile.TemporaryDirectory(dir=fabric.home.projections, prefix="verify-") as folder:
        paths = {one.name: Path(folder) / f"{one.name}.duckdb" for one in definitions}
        ends = _furthest(until.values())
        with building(fabric, definitions, paths, until=until, readers=readers_for(sum(ends.values()))) as (_, folding):
            folding.start()
            while not folding.reached(ends):  # ends with the log up to there; a broker that is away raises
                folding.step(STEP_SECONDS)
        database = Database(Path(folder), memory_limit=fabric.settings.sql_memory_limit)
        try:
            for one in definitions:
                database.attach(paths[one.name], one.name, read_only=True)
            found = {one.name: one for one in live}
            return [_verdict(database, one, found[one.name], ask, fabric.topics) for one in definitions]
        finally:
            database.close()


def _verdict(
    database: Database, definition: Definition, live: Contents, ask: AskDigests, topics: TopicCatalog
) -> dict[str, Any]:
    """Return the verdict on one projection; rows are looked for only in tables that differ."""
    replayed = read_contents(database, definition)
    verdict = compared(live, replayed)
    wrong = [table["table"] for table in verdict["tables"] if not table["equal"]]
    differences = [
        differing_rows(
            table,
            ask(definition.name, table),
            read_digests(database, definition, table),
            topic=topic_of_table(definition, table, topics),
            until=live.progress,
        )
        for table in wrong
        if _readable(live, table) and _readable(replayed, table) and table != PROGRESS
    ]
    if PROGRESS in wrong and _readable(live, PROGRESS):
        differences.append(differing_progress(live.progress, replayed.progress))
    return {**verdict, "differences": differences}


def _readable(contents: Contents, table: str) -> bool:
    return table in contents.tables and contents.tables[table].rows is not None


def _check_log(fabric: Fabric, definitions: tuple[Definition, ...], live: Sequence[Contents]) -> None:
    """Raise IntegrityError unless the log holds the offsets to which the live files were folded."""
    for one in live:
        for found in one.progress:
            if None in astuple(found):
                raise IntegrityError(
                    f"projection {one.name} cannot be compared",
                    cause=f"its table {PROGRESS} has a null where offsets and counts belong: {found}",
                    next_step=f"`esper projections rebuild {one.name}` builds it again from the log",
                )
    source = log_source(fabric, sorted({topic for one in definitions for topic in one.topics}))
    state = source.state()
    ids = {topic: found.topic_id for (topic, _), found in state.items()}
    for one in live:
        check_topic_ids(one.name, one.progress, ids)
        check_positions(one.name, one.progress, state)


def _furthest(ends: Iterable[Mapping[Position, int]]) -> dict[Position, int]:
    furthest: dict[Position, int] = {}
    for one in ends:
        for place, end in one.items():
            furthest[place] = max(furthest.get(place, 0), end)
    return furthest


def compared(live: Contents, replayed: Contents) -> dict[str, Any]:
    """Return the verdict on one projection, table by table."""
    tables = []
    for table in sorted(live.tables.keys() | replayed.tables.keys()):
        ours, theirs = live.tables.get(table, _ABSENT), replayed.tables.get(table, _ABSENT)
        tables.append(
            {"table": table, "rows": ours.rows, "live": ours.hash, "replayed": theirs.hash, "equal": ours == theirs}
        )
    return {
        "name": live.name,
        "version": live.version,
        "equal": all(table["equal"] for table in tables),
        "tables": tables,
    }
