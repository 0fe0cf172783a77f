"""`esper replay` and `esper projections ...`: what is derived from the log.

DuckDB and Arrow take half a second to import, so each command imports what it reads projections with.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from esper.cli._console import JsonFlag, emit_json, emit_table, open_fabric, say, settings
from esper.cli._progress import progress
from esper.core.errors import IntegrityError

projections = typer.Typer(
    no_args_is_help=True, help="Tables that are folded from the log. Example: esper projections list"
)


def replay(
    name: Annotated[list[str] | None, typer.Argument(help="Projections; default: all.")] = None,
    json: JsonFlag = False,
) -> None:
    """Rebuild projections from the first record of the log. Example: esper replay runs"""
    from esper.projection import Built
    from esper.projection import replay as replay_projections

    with progress("replaying", spins=True) as show:

        def tell(built: Built) -> None:
            show(f"{built.name}: {built.records} events, {built.events_per_second:,.0f} events/s")

        rows = replay_projections(open_fabric(), name or None, progress=tell)
    if json:
        emit_json(rows)
    else:
        emit_table(rows, ["name", "version", "records", "events_per_second"])


@projections.command("list")
def list_(json: JsonFlag = False) -> None:
    """List the projections with version, offsets and lag. Example: esper projections list"""
    from esper.projection import list_projections

    rows = list_projections(open_fabric())
    if json:
        emit_json(rows)
    else:
        emit_table(rows, ["name", "version", "pinned", "records", "lag", "tables"])


@projections.command()
def verify(
    name: Annotated[list[str] | None, typer.Argument(help="Projections; default: all.")] = None,
    json: JsonFlag = False,
) -> None:
    """Rebuild projections beside the live ones and compare; exit code 4 when one differs, with the rows that do.

    Example: esper projections verify runs --json
    """
    from esper.projection import verify as verify_projections

    document = verify_projections(open_fabric(), name or None)
    if json:
        emit_json(document)
    else:
        rows = [{"projection": p["name"]} | table for p in document["projections"] for table in p["tables"]]
        emit_table(rows, ["projection", "table", "rows", "live", "replayed", "equal"])
        differences = [
            {"projection": p["name"], "table": found["table"]} | row
            for p in document["projections"]
            for found in p["differences"]
            for row in found["rows"]
        ]
        if differences:
            emit_table(differences, ["projection", "table", "kind", "topic", "partition", "offset", "name"])
        say("equal: the projections are what the log says" if document["equal"] else "DIFFERENT")
    if not document["equal"]:
        sys.exit(IntegrityError.exit_code)


@projections.command()
def export(
    name: Annotated[str, typer.Argument(help="A projection.")],
    target: Annotated[Path, typer.Argument(help="A .duckdb file, or a folder for Parquet files; it must not exist.")],
    as_of: Annotated[
        str | None, typer.Option(help="A time with its zone, an event id, or offsets; default: all that is folded.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Copy a projection for other tools: one DuckDB file, or Parquet files with a manifest; the fold goes on.

    Example: esper projections export runs runs.duckdb
    """
    from esper.projection import export as export_projection

    with progress("exporting", spins=True):
        manifest = export_projection(name, target, as_of=as_of, settings=settings())
    say(f"as of {manifest['offsets']}")
    if json:
        emit_json(manifest)
    else:
        emit_table(manifest["tables"], ["name", "kind", "rows", "hash"])


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    app.command()(replay)
    app.add_typer(projections, name="projections")
