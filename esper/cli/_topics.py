"""`esper topics ...`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import typer

from esper.cli._console import JsonFlag, emit_json, emit_table, say, settings
from esper.oona import Cluster, TopicCatalog, TopicDescription, TopicPlan, apply_topics, describe_topics, plan_topics

topics = typer.Typer(
    no_args_is_help=True,
    help="Topics as files: a diff, its application, what is there. Example: esper topics plan",
)

_COLUMNS = ["topic", "action", "field", "before", "after", "reason"]


def _open() -> tuple[Cluster, TopicCatalog]:
    current = settings()
    return Cluster.open(current), TopicCatalog.load(current)


def _show(plan: TopicPlan, *, as_json: bool, nothing: str) -> None:
    changes = [asdict(change) for change in plan.changes]
    if as_json:
        emit_json({"changes": changes})
    elif changes:
        emit_table(changes, _COLUMNS)
    else:
        say(nothing)


@topics.command()
def plan(json: JsonFlag = False) -> None:
    """Show what `apply` would change; changes nothing. Example: esper topics plan --json"""
    _show(plan_topics(*_open()), as_json=json, nothing="no changes: the cluster matches the topic files")


@topics.command()
def apply(json: JsonFlag = False) -> None:
    """Make the cluster match the topic files; unsafe changes are refused. Example: esper topics apply"""
    _show(apply_topics(*_open()), as_json=json, nothing="nothing to do: the cluster matches the topic files")


def _row(topic: TopicDescription) -> dict[str, Any]:
    return asdict(topic) | {"records": sum(high - low for low, high in topic.offsets)}


@topics.command()
def describe(json: JsonFlag = False) -> None:
    """List every topic with its types, writers and record counts. Example: esper topics describe"""
    rows = [_row(topic) for topic in describe_topics(*_open())]
    if json:
        emit_json(rows)
    else:
        emit_table(rows, ["name", "partitions", "key", "messages", "writers", "records"])


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    app.add_typer(topics, name="topics")
