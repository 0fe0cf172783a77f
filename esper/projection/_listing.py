"""What projections there are, in which version, and how far each is behind the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from esper.core.errors import NotReadyError
from esper.oona import Fabric, Position
from esper.projection._query import through_projector_or_files
from esper.projection.building._building import log_ends
from esper.projection.definitions._definition import Definition, load_definitions
from esper.projection.definitions._folder import ProjectionFolder
from esper.projection.definitions._versions import readable_definitions
from esper.projection.files._contents import open_cursor, read_progress
from esper.projection.records._ledger import Progress
from esper.projection.serving._control import ProjectorClient
from esper.projection.serving._projections import ReadableProjections


def list_projections(fabric: Fabric) -> list[dict[str, Any]]:
    """Return a row for each projection, by name.

    `{name, version, folder_version, pinned, kept, built, records, applied, filtered, deduplicated, discarded, lag,
    tables, positions}`: the version that counts and the one of its folder, whether it was rolled back to and so stays
    until the next rebuild, the version that a rollback would give (null: none); counts of records, `lag` in records
    behind the end of the log, names of its tables and views, and the next offset of each partition that was read as
    `{topic, partition, next_offset}`.
    """
    folder = ProjectionFolder(fabric.home.projections)
    installed = {one.name: one.version for one in load_definitions(fabric.settings, fabric.topics)}
    definitions = readable_definitions(fabric.settings, fabric.topics, folder)
    ends = log_ends(fabric, definitions)
    try:
        progress = through_projector_or_files(
            fabric.home, fabric.settings, ask=ProjectorClient.progress, read=_progress_of_files
        )
    except NotReadyError:
        progress = {}
    return [
        {"name": one.name, "version": one.version, "folder_version": installed[one.name]}
        | _files(folder, one)
        | _row(one, progress.get(one.name), ends)
        for one in definitions
    ]


def _files(folder: ProjectionFolder, definition: Definition) -> dict[str, Any]:
    live, kept = folder.live(definition.name), folder.kept(definition.name)
    return {"pinned": live is not None and live.pinned, "kept": kept.version if kept is not None else None}


def _progress_of_files(projections: ReadableProjections) -> dict[str, list[Progress]]:
    found = {}
    for definition in projections.definitions:
        cursor = open_cursor(projections.database, definition)
        found[definition.name] = list(read_progress(cursor))
        cursor.close()
    return found


def _row(definition: Definition, progress: Sequence[Progress] | None, ends: Mapping[Position, int]) -> dict[str, Any]:
    known = {one.place: one for one in progress or ()}
    mine = [place for place in ends if place[0] in definition.topics]
    return {
        "built": progress is not None,
        "records": sum(one.read for one in known.values()),
        "applied": sum(one.applied for one in known.values()),
        "filtered": sum(one.filtered for one in known.values()),
        "deduplicated": sum(one.deduplicated for one in known.values()),
        "discarded": sum(one.discarded for one in known.values()),
        "lag": sum(ends[place] - (known[place].next_offset if place in known else 0) for place in mine),
        "tables": list(definition.relations),
        "positions": [
            {"topic": one.topic, "partition": one.partition, "next_offset": one.next_offset} for one in known.values()
        ],
    }
