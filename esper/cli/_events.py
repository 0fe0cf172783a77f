"""`esper events ...`."""

from __future__ import annotations

import json as jsonlib
import sys
from typing import Annotated

import typer

from esper.cli._console import open_fabric
from esper.oona import cat_events

events = typer.Typer(no_args_is_help=True, help="Read the log.")


@events.command()
def cat(
    topic: Annotated[str, typer.Argument(help="Topic to read from its beginning to its end.")],
    key: Annotated[str | None, typer.Option(help="Only events of this key, a run id for example.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many events.")] = None,
) -> None:
    """Print every event of a topic, one JSON object a line. Example: esper events cat runs --key run-12ab"""
    for event in cat_events(open_fabric(), topic, key=key, limit=limit):
        sys.stdout.write(jsonlib.dumps(event) + "\n")


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    app.add_typer(events, name="events")
