"""The tree of commands; each module of this package adds its own."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

import esper
from esper.cli import (
    _archive,
    _artifacts,
    _audit,
    _blueprints,
    _broker,
    _collect,
    _contracts,
    _demo,
    _dlq,
    _evaluate,
    _events,
    _fleet,
    _keys,
    _members,
    _policy,
    _projections,
    _rebuild,
    _runs,
    _runs_export,
    _runs_fork,
    _runs_verify,
    _sql,
    _topics,
    _train,
    _verify,
)
from esper.core.settings import load_settings

app = typer.Typer(
    name="esper",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Train neural networks that grow while they train; every step is an event on Kafka.\n\n"
    "Begin: esper init && esper up && esper train --task mnist1d --policy heuristic",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"esper-grow {esper.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Set up what every command shares."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("esper").setLevel(load_settings().log_level)


for module in (
    _broker,
    _members,
    _train,
    _collect,
    _evaluate,
    _runs,
    _runs_export,
    _runs_fork,
    _runs_verify,
    _topics,
    _contracts,
    _events,
    _fleet,
    _projections,
    _sql,
    _rebuild,
    _verify,
    _audit,
    _archive,
    _dlq,
    _keys,
    _blueprints,
    _artifacts,
    _policy,
    _demo,
):
    module.register(app)
