"""`esper contracts ...`: which events this installation knows, Esper's own and yours."""

from __future__ import annotations

from typing import Any

import typer

from esper.cli._console import JsonFlag, emit_json, emit_line, emit_table, settings
from esper.core.contracts import shipped_protos_dir
from esper.leyline import EVENT_TYPES, SHIPPED_TYPES, current_version, short_name
from esper.oona import TopicCatalog

contracts = typer.Typer(
    no_args_is_help=True,
    help="Events of Esper and of your own contracts. Example: esper contracts list",
)

_COLUMNS = ["name", "type", "topic", "version", "own"]


def _row(type_name: str, topic: str) -> dict[str, Any]:
    return {
        "name": short_name(type_name),
        "type": type_name,
        "topic": topic,
        "version": current_version(type_name),
        "own": type_name not in SHIPPED_TYPES,
    }


@contracts.command("list")
def list_contracts(json: JsonFlag = False) -> None:
    """Check contracts and topic files, and list every event with its topic. Example: esper contracts list --json"""
    catalog = TopicCatalog.load(settings())
    carried = {type_name: spec.name for spec in catalog for type_name in spec.types}
    rows = [_row(name, carried[name]) for name in EVENT_TYPES if name in carried]
    if json:
        emit_json(rows)
    else:
        emit_table(rows, _COLUMNS)


@contracts.command()
def include() -> None:
    """Print the folder that protoc imports `esper/leyline/v1/meta.proto` from. Example: esper contracts include"""
    emit_line(str(shipped_protos_dir()))


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    app.add_typer(contracts, name="contracts")
