"""`esper replay`, `esper projections ...` and `esper sql`: what is derived from the log.

DuckDB and Arrow take half a second to import, so each command imports what it reads projections with.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from esper.cli._console import JsonFlag, emit_json, emit_records, emit_table, err, open_fabric, say, settings
from esper.core.errors import IntegrityError, UsageError

#: More columns than this make a table whose words break; rows are then printed one below the other.
_COLUMNS_MAX = 10

projections = typer.Typer(
    no_args_is_help=True, help="Tables that are folded from the log. Example: esper projections list"
)


def replay(
    name: Annotated[list[str] | None, typer.Argument(help="Projections; default: all.")] = None,
    json: JsonFlag = False,
) -> None:
    """Rebuild projections from the first record of the log. Example: esper replay runs"""
    from esper.projection import replay as replay_projections

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bar:
        line = bar.add_task("replaying", total=None)

        def progress(projection: str, events: int, events_per_second: float) -> None:
            words = f"{projection}: {events} events, {events_per_second:,.0f} events/s"
            bar.update(line, description=words)

        rows = replay_projections(open_fabric(), name or None, progress=progress)
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
        emit_table(rows, ["name", "version", "records", "lag", "tables"])


@projections.command()
def verify(json: JsonFlag = False) -> None:
    """Rebuild every projection beside the live one and compare. Exit code 4 when one differs.

    Example: esper projections verify --json
    """
    from esper.projection import verify as verify_projections

    document = verify_projections(open_fabric())
    if json:
        emit_json(document)
    else:
        rows = [{"projection": p["name"]} | table for p in document["projections"] for table in p["tables"]]
        emit_table(rows, ["projection", "table", "rows", "live", "replayed", "equal"])
        say("equal: the projections are what the log says" if document["equal"] else "DIFFERENT")
    if not document["equal"]:
        sys.exit(IntegrityError.exit_code)


def sql(
    statement: Annotated[str, typer.Argument(help="One SELECT over all projections.")],
    json: JsonFlag = False,
) -> None:
    """Query the projections, also while members run.

    Example: esper sql "select run_id, epoch, command_type, reward from field_reports limit 5"
    """
    from esper.projection import query

    table = query(statement, settings=settings())
    _check_names(table.column_names)
    rows = table.to_pylist(maps_as_pydicts="lossy")
    if json:
        emit_json(rows)
    elif len(table.column_names) > _COLUMNS_MAX:
        emit_records(rows)
    elif rows:
        emit_table(rows, list(rows[0]))
    else:
        say("no rows")


def _check_names(names: list[str]) -> None:
    """Refuse rows in which one column would hide another."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"the result cannot be shown: more than one of its columns is called {', '.join(twice)}",
            next_step="Give each a name of its own: select a.run_id as first_run, b.run_id as second_run ...",
        )


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    app.command()(replay)
    app.command()(sql)
    app.add_typer(projections, name="projections")
