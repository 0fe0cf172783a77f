"""`esper runs ...`: what the log says about training runs."""

from __future__ import annotations

from typing import Annotated

import typer

from esper.cli._console import JsonFlag, emit_json, emit_table, open_fabric, say
from esper.core.errors import UsageError
from esper.projection import fresh_query, run_document, runs_list
from esper.weatherlight import cancel_run

runs = typer.Typer(no_args_is_help=True, help="Training runs, as the log tells of them. Example: esper runs list")

_EPOCH_COLUMNS = ["epoch", "train_loss", "val_loss", "val_accuracy", "command", "outcome", "latency_ms", "digest"]
#: Enough of a digest to tell two apart by eye; --json has all of it.
_DIGEST_SHOWN = 12


@runs.command("list")
def list_(json: JsonFlag = False) -> None:
    """List all runs with their state. Example: esper runs list"""
    with fresh_query(open_fabric()) as query:
        rows = runs_list(query)
    if json:
        emit_json(rows)
    else:
        emit_table(rows, ["run_id", "task", "policy", "seed", "epochs", "status", "failure", "accuracy", "parameters"])


@runs.command()
def show(run_id: Annotated[str, typer.Argument(help="Id of the run.")], json: JsonFlag = False) -> None:
    """Show one run: every epoch with its command and outcome. Example: esper runs show run-92955d72d813 --json"""
    with fresh_query(open_fabric()) as query:
        document = run_document(query, run_id)
    if document is None:
        raise UsageError(f"there is no run {run_id!r} in the log", next_step="`esper runs list` shows all runs")
    if json:
        emit_json(document)
        return
    single = {name: value for name, value in document.items() if name not in ("seeds", "epochs") and value is not None}
    emit_table([{"field": name, "value": value} for name, value in single.items()], ["field", "value"])
    rows = [row | {"digest": (row["digest"] or "")[:_DIGEST_SHOWN]} for row in document["epochs"]]
    emit_table(rows, _EPOCH_COLUMNS, title="epochs")
    emit_table(document["seeds"], ["seed_id", "slot", "blueprint_id", "stage"], title="seeds")


@runs.command()
def cancel(run_id: Annotated[str, typer.Argument(help="Id of the run.")]) -> None:
    """End a run that nobody is to go on with, wherever it is. Example: esper runs cancel run-92955d72d813"""
    cancel_run(open_fabric(), run_id)
    say(f"run {run_id} is cancelled; `esper runs show {run_id}` lists what it did")


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    app.add_typer(runs, name="runs")
