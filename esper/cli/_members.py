"""`esper serve`, `esper run` and `esper status`: members as processes."""

from __future__ import annotations

from typing import Annotated

import typer

from esper.cli._console import JsonFlag, emit_json, emit_line, emit_table, open_fabric, open_home, say, settings
from esper.cli._latency import EnforceLatency, enforce_latency
from esper.core.errors import UsageError
from esper.core.home import live_members
from esper.oona.broker import LocalBroker
from esper.weatherlight import (
    SUBSYSTEMS,
    Member,
    Supervisor,
    check_subsystem,
    run_member,
    stop_on_signals,
)


def wanted_members(only: str | None) -> list[Member]:
    """Return the members that `--only tamiyo,tolaria=2` names; all subsystems, once each, without it.

    Raises:
        UsageError: an unknown subsystem, or a count that is not a whole number from 1 to 64.
    """
    members: list[Member] = []
    for part in (only or ",".join(SUBSYSTEMS)).split(","):
        name, _, count = part.strip().partition("=")
        check_subsystem(name)
        if count and (not count.isdigit() or not 1 <= int(count) <= 64):
            raise UsageError(f"--only {part!r} cannot be used", cause="a count is a number from 1 to 64")
        members += [Member(name, index) for index in range(int(count or 1))]
    return members


def serve(
    only: Annotated[str | None, typer.Option(help="Subsystems and counts, `tamiyo,tolaria=2`; default: all.")] = None,
    enforce: EnforceLatency = False,
) -> None:
    """Keep the members running until Ctrl-C; each is a process and a member of its group.

    Example: esper serve --only tamiyo,tolaria=2
    """
    enforce_latency(wanted=enforce)
    members = wanted_members(only)
    home = open_home()
    open_fabric().close()
    stop = stop_on_signals()
    with Supervisor(home, members) as supervisor:
        say(f"serving {', '.join(supervisor.names)}; logs in {home.logs}; Ctrl-C stops")
        supervisor.wait(stop)
    say("all members have stopped")


def run(
    subsystem: Annotated[str, typer.Argument(help=f"One of {', '.join(SUBSYSTEMS)}.")],
    index: Annotated[int, typer.Option(min=0, help="Number of this member among its like.")] = 0,
    enforce: EnforceLatency = False,
) -> None:
    """Run one member in this process until Ctrl-C. Example: esper run tamiyo"""
    check_subsystem(subsystem)
    enforce_latency(wanted=enforce)
    run_member(settings(), Member(subsystem, index), stop_on_signals())


def status(json: JsonFlag = False) -> None:
    """Show the broker and the members that live on this machine. Example: esper status --json"""
    current, home = settings(), open_home()
    bootstrap = current.kafka_bootstrap or LocalBroker(home, current).bootstrap()
    rows = [{"name": m.name, "pid": m.pid, "state": m.state} for m in live_members(home)]
    if json:
        emit_json({"bootstrap": bootstrap, "members": rows, "nissa_url": None})
        return
    emit_line(f"broker: {bootstrap or 'not running (esper up)'}")
    if rows:
        emit_table(rows, ["name", "pid", "state"])
    else:
        emit_line("no members (esper serve)")


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    app.command()(serve)
    app.command()(run)
    app.command()(status)
