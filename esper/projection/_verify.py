"""Whether live projections are what the log says: built again beside them, and compared table by table."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from esper.core.errors import NotReadyError
from esper.oona import Fabric, Position
from esper.projection._contents import Contents, TableContent, read_contents
from esper.projection._continuity import check_positions, check_topic_ids
from esper.projection._database import Database
from esper.projection._definition import Definition, choose, load_definitions
from esper.projection._query import through_projector_or_files
from esper.projection._rebuild import building
from esper.projection._source import KafkaSource

_STEP_SECONDS: Final = 0.1
_ABSENT: Final = TableContent(None, "absent")


def verify(fabric: Fabric, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Build projections again up to the very offsets that the live ones stand at, and compare table hashes.

    Members may run. Returns `{equal, projections: [{name, version, equal, tables: [{table, rows, live,
    replayed, equal}]}]}`: `rows` of the live table, hashes as 32 hexadecimal digits ("unreadable" where DuckDB
    cannot read it). The engine's own tables `esper.progress` and `esper.records` are compared too, and as
    `esper.definitions` the text of all tables and views.

    Raises:
        NotReadyError: a projection was not built yet.
        IntegrityError: the log is not the one that was folded.
        UsageError: there is no projection of that name.
    """
    definitions = choose(load_definitions(fabric.settings, fabric.topics), names)
    wanted = [one.name for one in definitions]
    live = through_projector_or_files(
        fabric.home,
        fabric.settings,
        ask=lambda client: client.contents(wanted),
        read=lambda projections: projections.contents([name for name in wanted if name not in projections.missing]),
    )
    _check_live(definitions, live)
    replayed = _replayed(fabric, definitions, live)
    projections = [compared(ours, replayed[ours.name]) for ours in live]
    return {"equal": all(one["equal"] for one in projections), "projections": projections}


def _check_live(definitions: Sequence[Definition], live: Sequence[Contents]) -> None:
    versions = {one.name: one.version for one in live}
    for one in definitions:
        if one.name not in versions:
            raise NotReadyError(f"projection {one.name} was not built yet", next_step="Run `esper replay`")
        if versions[one.name] != one.version:
            raise NotReadyError(
                f"projection {one.name} cannot be compared",
                cause=f"the projector runs version {versions[one.name]}, its folder is {one.version}",
                next_step="Restart the projector",
            )


def _replayed(fabric: Fabric, definitions: tuple[Definition, ...], live: Sequence[Contents]) -> Mapping[str, Contents]:
    """Build the projections again in a folder that is gone afterwards; return what they hold."""
    until = {one.name: {p.place: p.next_offset for p in one.progress} for one in live}
    _check_log(fabric, definitions, live)
    with tempfile.TemporaryDirectory(dir=fabric.home.projections, prefix="verify-") as folder:
        paths = {one.name: Path(folder) / f"{one.name}.duckdb" for one in definitions}
        with building(fabric, definitions, paths, until=until) as (_, folding):
            folding.start()
            ends = _furthest(until.values())
            while not folding.reached(ends):  # ends with the log up to there; a broker that is away raises
                folding.step(_STEP_SECONDS)
        return _read_all(fabric, definitions, Path(folder), paths)


def _check_log(fabric: Fabric, definitions: tuple[Definition, ...], live: Sequence[Contents]) -> None:
    source = KafkaSource(fabric, sorted({topic for one in definitions for topic in one.topics}))
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


def _read_all(
    fabric: Fabric, definitions: tuple[Definition, ...], folder: Path, paths: Mapping[str, Path]
) -> dict[str, Contents]:
    database = Database(folder, memory_limit=fabric.settings.sql_memory_limit)
    try:
        for one in definitions:
            database.attach(paths[one.name], one.name, read_only=True)
        return {one.name: read_contents(database, one) for one in definitions}
    finally:
        database.close()


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
