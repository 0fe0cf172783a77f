"""How commands talk: data on stdout, words on stderr, one line for each error, exit codes by kind.

Rich takes a sixth of a second to import: only what is laid out needs it, lines and JSON do not.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from esper.core.home import Home
from esper.core.settings import Settings, load_settings
from esper.oona import Fabric

if TYPE_CHECKING:
    from rich.console import Console

#: Where no terminal says how wide it is, tables are not folded to the width of one.
_WIDTH_ELSEWHERE = 200
#: Characters of one value in a record; a map of metrics has thousands.
_VALUE_SHOWN_MAX = 160


@cache
def layout() -> Console:
    """Return what lays out tables, trees and styled lines on stdout."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH_ELSEWHERE)


JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def plain(value: Any) -> Any:  # noqa: ANN401 - any JSON document
    """Return `value` without what JSON cannot say: numbers that are none become null, bytes hexadecimal text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Decimal) and value == value.to_integral_value():
        return int(value)  # A sum of integers; JSON bounds no number.
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def _write(stream: TextIO, line: str) -> None:
    stream.write(line + "\n")
    stream.flush()


def emit_json(document: object) -> None:
    """Write one JSON document on stdout."""
    _write(sys.stdout, json.dumps(plain(document), default=str, allow_nan=False))


def say(text: str) -> None:
    """Write a line of talk on stderr."""
    _write(sys.stderr, text)


def emit_line(text: str) -> None:
    """Write a line of what was asked for on stdout."""
    _write(sys.stdout, text)


def _cell(value: Any) -> str:  # noqa: ANN401 - a cell shows whatever a row holds
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_cell(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return " ".join(_cell(entry) for entry in value)
    return "" if value is None else str(value)


def emit_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, title: str | None = None) -> None:
    """Print rows as a table on stdout; names of `columns` select and order the fields."""
    rows = list(rows)
    if not rows:
        say(f"no {title}" if title else "none")
        return
    from rich.table import Table

    table = Table(title=title, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    layout().print(table)


def emit_records(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print each row as lines of name and value, for rows that are too wide for a table; long values are cut."""
    for number, row in enumerate(rows, start=1):
        width = max(len(name) for name in row)
        layout().print(f"row {number}", style="bold", markup=False)
        for name, value in row.items():
            text = _cell(value)
            shown = text if len(text) <= _VALUE_SHOWN_MAX else f"{text[:_VALUE_SHOWN_MAX]}... (--json has it all)"
            layout().print(f"  {name:<{width}}  {shown}", markup=False, soft_wrap=True)


def settings() -> Settings:
    """Return this process's settings."""
    return load_settings()


def open_fabric(member: str = "cli") -> Fabric:
    """Return a fabric for one command; raises what `Fabric.open` raises."""
    return Fabric.open(settings(), member=member)


def open_home() -> Home:
    """Return the home of this process's settings, which must have been made."""
    return Home.open(settings())
