"""`esper events ...`: the log for people and their tools."""

from __future__ import annotations

import csv
import json as jsonlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_type_hints

import typer

from esper.cli._console import JsonFlag, emit_json, layout, open_fabric, say, settings
from esper.core.contracts import load_own_contracts
from esper.oona import (
    ChainEvent,
    EventObject,
    Explanation,
    Point,
    Selection,
    cat_events,
    explain_event,
    find_events,
    parse_point,
    tail_events,
    write_descriptor_set,
)

if TYPE_CHECKING:
    from rich.tree import Tree

events = typer.Typer(no_args_is_help=True, help="Read the log. Example: esper events cat runs")

_COLUMNS = tuple(get_type_hints(EventObject))


class Format(str, Enum):  # noqa: UP042 - typer shows the values of a plain str enum
    """How events are printed."""

    jsonl = "jsonl"
    csv = "csv"


Topic = Annotated[str, typer.Argument(help="Topic to read.")]
Key = Annotated[str | None, typer.Option(help="Only events of this key, a run id for example.")]
_POINTS = "an offset, a time (ISO 8601), an age (15m), an event id, begin or end"
From = Annotated[str | None, typer.Option("--from", metavar="POINT", help=f"Begin here: {_POINTS}.")]
To = Annotated[str | None, typer.Option("--to", metavar="POINT", help=f"Stop before this: {_POINTS}.")]
Where = Annotated[
    list[str] | None,
    typer.Option(metavar="FIELD=VALUE", help="Only events whose message says so; may be given several times."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Stop after so many events.")]
FormatOption = Annotated[Format, typer.Option("--format", help="One JSON object a line, or CSV with a head.")]


@events.command()
def cat(
    topic: Topic,
    key: Key = None,
    begin: From = None,
    end: To = None,
    where: Where = None,
    limit: Limit = None,
    form: FormatOption = Format.jsonl,
) -> None:
    """Print the events of a topic, partition by partition. Example: esper events cat runs --key run-12ab --from 2h"""
    asked = _selection(key, begin, end, where)
    _emit(
        cat_events(open_fabric(), topic, key=key, limit=limit, begin=asked.begin, end=asked.end, where=asked.where),
        form,
    )


@events.command()
def tail(
    topic: Topic,
    key: Key = None,
    begin: From = None,
    end: To = None,
    where: Where = None,
    limit: Limit = None,
    form: FormatOption = Format.jsonl,
) -> None:
    """Print the events of a topic as they come, until Ctrl-C. Example: esper events tail runs --from 15m"""
    _emit(tail_events(open_fabric(), topic, _selection(key, begin, end, where)), form, limit=limit)


@events.command()
def find(
    event_id: Annotated[str | None, typer.Argument(help="Id of the event.")] = None,
    types: Annotated[list[str] | None, typer.Option("--type", help="Only events of this type.")] = None,
    topics: Annotated[list[str] | None, typer.Option("--topic", help="Only in this topic; default: in all.")] = None,
    key: Key = None,
    begin: From = None,
    end: To = None,
    where: Where = None,
    limit: Limit = None,
    form: FormatOption = Format.jsonl,
) -> None:
    """Find events in all topics, earliest first. Example: esper events find --type FieldReport --where epoch=3"""
    found = find_events(
        open_fabric(),
        _selection(key, begin, end, where),
        event_id=event_id,
        types=types or (),
        topics=topics or (),
        limit=limit,
    )
    _emit(found, form)
    if not found:
        say("nothing found")


@events.command()
def explain(
    event_id: Annotated[str, typer.Argument(help="Id of any event.")],
    key: Annotated[str | None, typer.Option(help="Its key (the run's id); the whole log is searched without.")] = None,
    json: JsonFlag = False,
) -> None:
    """Show what an event followed from and led to. Example: esper events explain 0123456789abcdef0123456789abcdef"""
    explanation = explain_event(open_fabric(), event_id, key=key)
    if json:
        emit_json(explanation.document())
    else:
        layout().print(_tree(explanation))


@events.command()
def descriptors(
    path: Annotated[Path, typer.Argument(metavar="OUT", help="File to write.")], json: JsonFlag = False
) -> None:
    """Write the contract as a protobuf descriptor set for other tools. Example: esper events descriptors esper.binpb"""
    load_own_contracts(settings())
    written = write_descriptor_set(path)
    if json:
        emit_json(asdict(written))
    else:
        say(f"{written.path}: {len(written.messages)} event types, sha256 {written.sha256}")


def _selection(key: str | None, begin: str | None, end: str | None, where: list[str] | None) -> Selection:
    return Selection(key=key, begin=_point(begin), end=_point(end), where=tuple(where or ()))


def _point(text: str | None) -> Point | None:
    return None if text is None else parse_point(text)


def _emit(found: Iterable[EventObject], form: Format, *, limit: int | None = None) -> None:
    """Write events on stdout as they come; each line is out before the next is waited for."""
    write = _csv_writer() if form is Format.csv else _write_line
    for number, event in enumerate(found, start=1):
        write(event)
        sys.stdout.flush()
        if number == limit:
            return


def _write_line(event: EventObject) -> None:
    sys.stdout.write(jsonlib.dumps(event) + "\n")


def _csv_writer() -> Callable[[EventObject], None]:
    """Write the head and return what writes a row; the payload is one column of JSON."""
    rows = csv.DictWriter(sys.stdout, _COLUMNS, lineterminator="\n")
    rows.writeheader()

    def write(event: EventObject) -> None:
        rows.writerow({**event, "payload": jsonlib.dumps(event["payload"])})

    return write


def _tree(explanation: Explanation) -> Tree:
    """Return the chain as a tree; the event that was asked for is marked."""
    from rich.tree import Tree

    first, *rest = explanation.chain
    root = Tree(_label(first, explanation.event_id))
    branches = {first.event["event_id"]: root}
    for link in rest:
        branches[link.event["event_id"]] = branches[link.parent_id].add(_label(link, explanation.event_id))
    if explanation.caused_by is None and not explanation.leads_to and not explanation.missing:
        return root
    whole = Tree(f"key {explanation.key}")
    if explanation.caused_by is not None:
        whole.add("after " + _label(explanation.caused_by, ""))
    for missing in explanation.missing:
        whole.add(f"after {missing}, which no authentic event of the log is")
    whole.children.append(root)
    for link in explanation.leads_to:
        whole.add("then " + _label(link, ""))
    return whole


def _label(link: ChainEvent, asked: str) -> str:
    event = link.event
    place = f"{event['topic']}-{event['partition']}-{event['offset']}"
    mark = "  <- asked for" if event["event_id"] == asked else ""
    return f"{link.role}  {link.summary}  [{event['event_id']} {place}]{mark}".replace("[", "\\[")


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    app.add_typer(events, name="events")
