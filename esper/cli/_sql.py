"""`esper sql`: one query over all projections, now or as of a point in the past.

DuckDB and Arrow take half a second to import, so the command imports what it needs itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esper.cli._console import JsonFlag, emit_line, emit_records, emit_table, open_fabric, say, settings
from esper.cli._formats import Format, format_of, parameter, write_rows, write_standard_output
from esper.core.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

#: More columns than this make a table whose words break; rows are then printed one below the other.
_COLUMNS_MAX = 10


def sql(
    statement: Annotated[str, typer.Argument(help="One SELECT over all projections.")],
    json: JsonFlag = False,
    form: Annotated[
        Format | None, typer.Option("--format", help="Form of the rows; --output's suffix says it too.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the rows into this file, all of them or none.")] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(help="Value of the next ? (or $1, $2, ...): a number, true, false, null, or text."),
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option(help="A time with its zone, an event id, offsets such as runs:0=12,1=7, or now."),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Longest that it may run, in seconds, up to ESPER_SQL_TIMEOUT_SECONDS.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Fold what the log holds now first; a running projector does so anyway.")
    ] = False,
    resolve_only: Annotated[
        bool, typer.Option("--resolve-only", help="Print the offsets that --as-of comes to, and nothing else.")
    ] = False,
) -> None:
    """Query the projections, also while members run; --as-of shows them as they were, and says which offsets that is.

    Example: esper sql "select run_id, epoch, reward from field_reports where run_id = ?" --param run-1 --as-of now
    """
    from esper.projection import catch_up, is_folding, query, resolve_as_of

    if fresh:
        catch_up(open_fabric())
    chosen = format_of(form, json=json, output=output)
    if resolve_only:
        if as_of is None:
            raise UsageError("--resolve-only has nothing to resolve", next_step="Add --as-of TIME, EVENT_ID or now")
        emit_line(resolve_as_of(as_of, sql=statement, settings=settings()).offsets)
        return
    values = [parameter(text) for text in param or ()]
    table = query(statement, values, as_of=as_of, timeout=timeout, settings=settings())
    _check_names(table.column_names)
    _say_as_of(table)
    if not fresh and as_of in (None, "now") and not is_folding(settings()):
        say("note: no projector runs, so this is what was folded before; --fresh folds the rest of the log first")
    if output is not None:
        write_rows(table, chosen, output)
        say(f"{table.num_rows} rows in {output}")
    elif chosen is Format.TABLE:
        _show(table)
    else:
        write_standard_output(table, chosen)


def _say_as_of(table: pa.Table) -> None:
    """Tell which point of the log was shown, in the form in which it can be given back."""
    metadata = table.schema.metadata or {}
    if offsets := metadata.get(b"esper.as_of"):
        say(f"as of {offsets.decode()}")
    if note := metadata.get(b"esper.as_of.note"):
        say(f"note: {note.decode()}")


def _show(table: pa.Table) -> None:
    rows = table.to_pylist(maps_as_pydicts="lossy")
    if len(table.column_names) > _COLUMNS_MAX:
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
    """Add this command to the tree."""
    app.command()(sql)
