"""`esper init`, `up`, `down` and `doctor`: the home and its broker."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from esper.cli._console import JsonFlag, emit_json, emit_table, say, settings
from esper.core.home import Home
from esper.oona import Cluster, TopicCatalog, apply_topics
from esper.oona.broker import LocalBroker
from esper.weatherlight import examine


def init(json: JsonFlag = False) -> None:
    """Make the home: its folders and its signing key. Changes nothing that is there. Example: esper init"""
    home = Home.create(settings())
    home.check_secret(settings())
    if json:
        emit_json({"home": str(home.root), "key_fingerprint": home.key_fingerprint})
    else:
        say(f"home {home.root} is ready (key {home.key_fingerprint}); next: esper up")


def up(
    secure: Annotated[
        bool | None,
        typer.Option(
            "--secure/--plain",
            help="Have the broker ask each subsystem for its login and allow it what the topic files state, or not; "
            "the home keeps the mode.",
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Start the local broker of the home and apply the topics; it outlives this command. Example: esper up"""
    current = settings()
    home = Home.create(current)
    home.check_secret(current)
    bootstrap = LocalBroker(home, current).start(secure=secure)
    changes = apply_topics(Cluster.open(current, home=home), TopicCatalog.load(current)).changes
    if json:
        emit_json({"bootstrap": bootstrap, "topics_changed": len(changes), "secure": home.broker_secure})
    else:
        mode = "is up and secure" if home.broker_secure else "is up"
        say(f"broker {bootstrap} {mode}, {len(changes)} topic changes applied; `esper down` stops it")


def down(json: JsonFlag = False) -> None:
    """Stop the local broker of the home; its data stay. Example: esper down"""
    current = settings()
    stopped = LocalBroker(Home.open(current), current).stop()
    if json:
        emit_json({"stopped": stopped})
    else:
        say("broker stopped" if stopped else "no broker was running")


def doctor(json: JsonFlag = False) -> None:
    """Check what Esper needs on this machine, each with its cure. Example: esper doctor"""
    checks = [check.as_dict() for check in examine(settings())]
    if json:
        emit_json(checks)
    else:
        emit_table(checks, ["check", "ok", "found", "cure"])
    if not all(check["ok"] for check in checks):
        sys.exit(3)


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    for command in (init, up, down, doctor):
        app.command()(command)
