"""What a projector answers about the projections that it holds: queries, points in the past, snapshots."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from esper.core.errors import UsageError
from esper.projection.points._asof import parse_point
from esper.projection.points._resolve import positions_of
from esper.projection.serving._server import Routes
from esper.projection.serving._writable import WritableProjections
from esper.projection.sql._parameters import unpack


def reading_routes(projections: WritableProjections, folder: Path) -> Routes:
    """Return the routes that change nothing; `ProjectorClient` is their other end."""

    def query(request: dict[str, Any]) -> object:
        offsets = request.get("offsets")
        seconds = request.get("seconds")
        return projections.query(
            text_of(request, "sql"),
            unpack(request.get("parameters") or []),
            offsets=None if offsets is None else _offsets(offsets),
            seconds=float(seconds) if isinstance(seconds, int | float) and seconds > 0 else None,
        )

    def resolve(request: dict[str, Any]) -> object:
        point = parse_point(text_of(request, "point"))
        return projections.resolve(point, sql=request.get("sql"), name=request.get("name")).as_dict()

    def export(request: dict[str, Any]) -> object:
        path = projections.export(folder, text_of(request, "name"), _offsets(text_of(request, "offsets")))
        return {"file": path.name}

    def contents(request: dict[str, Any]) -> object:
        return [one.as_dict() for one in projections.contents(request.get("names"))]

    def progress(_: dict[str, Any]) -> object:
        files = list(projections.files.items())
        return {name: [asdict(one) for one in file.progress.values()] for name, file in files}

    return {"/query": query, "/resolve": resolve, "/export": export, "/contents": contents, "/progress": progress}


def text_of(request: dict[str, Any], field: str) -> str:
    """Return a field of a request; raises UsageError when it is no text."""
    value = request.get(field)
    if not isinstance(value, str):
        raise UsageError("the request cannot be read", cause=f"its field {field!r} is no text")
    return value


def _offsets(text: object) -> dict[tuple[str, int], int]:
    if not isinstance(text, str):
        raise UsageError("the request cannot be read", cause="its field 'offsets' is no text")
    return positions_of(text)
