"""`esper blueprints ...`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from esper.cli._console import JsonFlag, emit_json, emit_table
from esper.core.errors import UsageError

blueprints = typer.Typer(no_args_is_help=True, help="What may be grafted. Example: esper blueprints list")


def _row(blueprint_id: str, blueprint: Any) -> dict[str, Any]:  # noqa: ANN401 - karn is imported late
    descriptor = blueprint.descriptor()
    return {
        "blueprint_id": blueprint_id,
        "name": descriptor.name,
        "tier": blueprint.tier,
        "risk": descriptor.risk,
        "layouts": list(blueprint.layouts),
        "parameters": {name: list(bounds) for name, bounds in blueprint.parameters.items()},
    }


@blueprints.command("list")
def list_(json: JsonFlag = False) -> None:
    """List the blueprints with their bounds. Example: esper blueprints list --json"""
    from esper.karn import catalogue

    rows = [_row(blueprint_id, blueprint) for blueprint_id, blueprint in catalogue().items()]
    if json:
        emit_json(rows)
    else:
        emit_table(rows, ["blueprint_id", "name", "tier", "risk", "layouts", "parameters"])


@blueprints.command()
def show(
    blueprint_id: Annotated[str, typer.Argument(help="Id, BP009 for example.")],
    json: JsonFlag = False,
) -> None:
    """Show one blueprint with its written meaning. Example: esper blueprints show BP009"""
    from esper.karn import catalogue

    known = catalogue()
    if blueprint_id not in known:
        raise UsageError(
            f"there is no blueprint {blueprint_id!r}",
            cause=f"known are {', '.join(known)}",
            next_step="`esper blueprints list` shows what each does",
        )
    row = _row(blueprint_id, known[blueprint_id]) | {"description": known[blueprint_id].descriptor().description}
    if json:
        emit_json(row)
    else:
        emit_table([{"field": k, "value": v} for k, v in row.items()], ["field", "value"])


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    app.add_typer(blueprints, name="blueprints")
