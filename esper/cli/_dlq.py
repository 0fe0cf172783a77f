"""`esper dlq ...`: records that were set aside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import typer

from esper.cli._console import JsonFlag, emit_json, emit_table, open_fabric, say
from esper.oona import LetterBoard, LetterOrder, discard, list_dead_letters, redrive, show_dead_letter

dlq = typer.Typer(no_args_is_help=True, help="Records set aside by reference, and parked keys. Example: esper dlq list")

_COLUMNS = ["topic", "partition", "offset", "key", "group", "state", "waits_for", "reason", "attempts"]

Topic = Annotated[str, typer.Argument(help="Topic of the record.")]
Partition = Annotated[int, typer.Argument(help="Its partition.")]
Offset = Annotated[int, typer.Argument(help="Its offset.")]
Group = Annotated[str | None, typer.Option(help="Group that parked it; needed where several have.")]
Note = Annotated[str, typer.Option(help="Why; kept in the event.")]


@dlq.command("list")
def list_(
    all_: Annotated[bool, typer.Option("--all", help="Show what was redriven or discarded, too.")] = False,
    json: JsonFlag = False,
) -> None:
    """List what is set aside, what is parked and what waits for it. Example: esper dlq list --json"""
    rows = [asdict(row) for row in list_dead_letters(open_fabric(), ended=all_)]
    if json:
        emit_json(rows)
    else:
        emit_table(rows, _COLUMNS)


@dlq.command()
def show(
    topic: Topic,
    partition: Partition,
    offset: Offset,
    json: JsonFlag = False,
) -> None:
    """Show one dead letter with the record it refers to. Example: esper dlq show runs 3 120"""
    document = asdict(show_dead_letter(open_fabric(), topic, partition, offset))
    if json:
        emit_json(document)
    else:
        emit_table([{"field": k, "value": v} for k, v in document.items()], ["field", "value"])


@dlq.command("redrive")
def redrive_(
    topic: Topic,
    partition: Partition,
    offset: Offset,
    group: Group = None,
    note: Note = "",
    json: JsonFlag = False,
) -> None:
    """Have a parked record handled again, and those that wait for it after it. Example: esper dlq redrive runs 3 120"""
    _order(redrive, (topic, partition, offset), group=group, note=note, json=json)


@dlq.command("discard")
def discard_(
    topic: Topic,
    partition: Partition,
    offset: Offset,
    group: Group = None,
    note: Note = "",
    json: JsonFlag = False,
) -> None:
    """Give a record up; those that wait for it go on without it. Example: esper dlq discard runs 3 120"""
    _order(discard, (topic, partition, offset), group=group, note=note, json=json)


def _order(
    order: Callable[..., LetterOrder], reference: tuple[str, int, int], *, group: str | None, note: str, json: bool
) -> None:
    with open_fabric() as fabric, fabric.publisher("cli") as publisher:
        given = order(LetterBoard.read(fabric), publisher, reference, group=group, note=note)
    if json:
        emit_json(asdict(given))
    else:
        emit_table([{"field": k, "value": v} for k, v in asdict(given).items()], ["field", "value"])
        say(f"{given.waiting} records wait behind it; `esper dlq list` shows what is left")


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    app.add_typer(dlq, name="dlq")
