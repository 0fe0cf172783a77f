"""`esper projections rebuild` and `rollback`: another file of a projection takes over while members run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper.cli._console import JsonFlag, emit_json, open_fabric, say
from esper.cli._progress import progress
from esper.cli._projections import projections

if TYPE_CHECKING:
    from esper.projection import Built

Name = Annotated[str, typer.Argument(help="The projection.")]


def rebuild(name: Name, json: JsonFlag = False) -> None:
    """Build a projection beside the live one, in the version of its folder, and switch to it.

    Queries never wait for more than the switch. Example: esper projections rebuild runs
    """
    from esper.projection import replay

    with progress(f"building {name}") as show:

        def tell(built: Built) -> None:
            show(_words(built), done=built.records, total=built.records + built.left)

        [row] = replay(open_fabric(), [name], progress=tell)
    if json:
        emit_json(row)
        return
    say(f"{row['records']} records in {row['seconds']:.1f} s, {row['events_per_second']:,.0f} events/s")
    _say_switched(row)


def rollback(name: Name, json: JsonFlag = False) -> None:
    """Go back to the file that a rebuild replaced, caught up; the present one is kept instead.

    Example: esper projections rollback runs
    """
    from esper.projection import roll_back

    row = roll_back(open_fabric(), name)
    if json:
        emit_json(row)
        return
    _say_switched(row)
    if row["pinned"]:
        say(f"its folder is of another version: `esper projections rebuild {name}` goes back to that")


def _words(built: Built) -> str:
    rate = built.events_per_second
    left = f"{built.left / rate:,.0f} s left" if rate > 0 else "?"
    return f"{built.name}: {rate:,.0f} events/s, {built.left} records left, {left}"


def _say_switched(row: dict[str, Any]) -> None:
    kept = f"; version {row['previous']} is kept for a rollback" if row["previous"] else ""
    say(f"{row['name']} is version {row['version']}{kept}; queries waited {row['switch_seconds'] * 1e3:.0f} ms at most")
    for one in row["positions"]:
        say(f"  {one['topic']}-{one['partition']} from offset {one['next_offset']} on")


def register(app: typer.Typer) -> None:
    """Add these commands to `esper projections`, which its own module adds to the tree."""
    del app
    projections.command()(rebuild)
    projections.command()(rollback)
