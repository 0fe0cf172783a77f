"""`esper dlq ...`: records that were set aside."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from esper.cli._console import JsonFlag, emit_json, emit_table, open_fabric
from esper.oona import list_dead_letters, show_dead_letter

dlq = typer.Typer(no_args_is_help=True, help="Dead letters: records that were set aside, by reference.")


@dlq.command("list")
def list_(json: JsonFlag = False) -> None:
    """List every record that was set aside, with its reason. Example: esper dlq list --json"""
    rows = [asdict(row) for row in list_dead_letters(open_fabric())]
    if json:
        emit_json(rows)
    else:
        emit_table(rows, ["topic", "partition", "offset", "key", "reason", "attempts"])


@dlq.command()
def show(
    topic: Annotated[str, typer.Argument(help="Topic of the record.")],
    partition: Annotated[int, typer.Argument(help="Its partition.")],
    offset: Annotated[int, typer.Argument(help="Its offset.")],
    json: JsonFlag = False,
) -> None:
    """Show one dead letter with the record it refers to. Example: esper dlq show runs 3 120"""
    document = asdict(show_dead_letter(open_fabric(), topic, partition, offset))
    if json:
        emit_json(document)
    else:
        emit_table([{"field": k, "value": v} for k, v in document.items()], ["field", "value"])


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    app.add_typer(dlq, name="dlq")
