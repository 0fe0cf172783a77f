"""`esper runs ...`: what the log says about training runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from esper.cli._console import JsonFlag, emit_json, emit_line, emit_table, open_fabric, say
from esper.core.errors import UsageError
from esper.leyline import messages as ly
from esper.weatherlight import RunOrder, await_outcome, cancel_run, order_run, restore_outlook

runs = typer.Typer(no_args_is_help=True, help="Training runs, as the log tells of them. Example: esper runs list")

_EPOCH_COLUMNS = [
    "epoch",
    "train_loss",
    "val_loss",
    "val_accuracy",
    "command",
    "outcome",
    "latency_ms",
    "digest",
    "restored from",
]
_RETURNS = (
    "select from_epoch, to_epoch, reason, rate_factor, digest_before, digest_after, command_id from rollbacks "
    "where run_id = ? order by from_epoch"
)
#: Enough of a digest to tell two apart by eye; --json has all of it.
_DIGEST_SHOWN = 12


@runs.command("list")
def list_(json: JsonFlag = False) -> None:
    """List all runs with their state. Example: esper runs list"""
    from esper.projection import fresh_query, runs_list

    with fresh_query(open_fabric()) as query:
        rows = runs_list(query)
    if json:
        emit_json(rows)
    else:
        emit_table(rows, ["run_id", "task", "policy", "seed", "epochs", "status", "failure", "accuracy", "parameters"])


@runs.command()
def show(run_id: Annotated[str, typer.Argument(help="Id of the run.")], json: JsonFlag = False) -> None:
    """Show one run: every epoch, and how it is restored. Example: esper runs show run-92955d72d813 --json"""
    from esper.projection import fresh_query, run_document

    fabric = open_fabric()
    with fresh_query(fabric) as query:
        document = run_document(query, run_id)
        if document is not None:
            outlook = restore_outlook(fabric, lambda sql, values: query(sql, values).to_pylist(), run_id)
            returns = query(_RETURNS, [run_id]).to_pylist()
    if document is None:
        raise UsageError(f"there is no run {run_id!r} in the log", next_step="`esper runs list` shows all runs")
    if json:
        emit_json({**document, "restore": outlook, "rollbacks": returns})
        return
    single = {name: value for name, value in document.items() if name not in ("seeds", "epochs") and value is not None}
    emit_table([{"field": name, "value": value} for name, value in single.items()], ["field", "value"])
    restored = {way["epoch"]: _way(way) for way in outlook["epochs"]}
    rows = [
        row | {"digest": (row["digest"] or "")[:_DIGEST_SHOWN], "restored from": restored.get(row["epoch"], "")}
        for row in document["epochs"]
    ]
    emit_table(rows, _EPOCH_COLUMNS, title="epochs")
    if returns:
        emit_table(returns, ["from_epoch", "to_epoch", "reason", "rate_factor"], title="rollbacks")
    emit_table(document["seeds"], ["seed_id", "slot", "blueprint_id", "stage"], title="seeds")


def _way(way: Mapping[str, Any]) -> str:
    """Return in words how an epoch is restored."""
    start = f"checkpoint {way['from_epoch']}" if way["from_epoch"] else "the beginning"
    if not way["repeated_epochs"]:
        return f"{start}, at once"
    about = "" if way["seconds"] is None else f", about {way['seconds']:.1f} s"
    return f"{start} + {way['repeated_epochs']} epochs{about}"


@runs.command()
def cancel(run_id: Annotated[str, typer.Argument(help="Id of the run.")]) -> None:
    """End a run that nobody is to go on with, wherever it is. Example: esper runs cancel run-92955d72d813"""
    cancel_run(open_fabric(), run_id)
    say(f"run {run_id} is cancelled; `esper runs show {run_id}` lists what it did")


@runs.command()
def command(
    run_id: Annotated[str, typer.Argument(help="Id of the run.")],
    operation: Annotated[str, typer.Argument(help="germinate, cull, ... a seed; rollback, pause, ... the run.")],
    seed: Annotated[str, typer.Option(help="Id of the seed; germinate makes a new one.")] = "",
    slot: Annotated[str, typer.Option(help="Slot to germinate in.")] = "",
    blueprint: Annotated[str, typer.Option(help="Id of the blueprint to germinate.")] = "",
    parameter: Annotated[list[str] | None, typer.Option("--set", help="A parameter, NAME=NUMBER; repeatable.")] = None,
    epochs: Annotated[
        str, typer.Option(help="Epochs at whose edges it may be applied: 7 or 7-12; all that are left.")
    ] = "",
    reason: Annotated[str, typer.Option(help="Why, for the record; orders on the whole run keep it.")] = "",
    blend_mode: Annotated[
        str, typer.Option(help="How start_grafting joins a seed: residual, convex, channel, confidence.")
    ] = "",
    curve: Annotated[str, typer.Option(help="Curve of alpha for start_grafting: linear, cosine, sigmoid.")] = "",
    hold: Annotated[bool, typer.Option("--hold", help="Let a germinated seed wait for start_training.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its outcome.")] = False,
    json: JsonFlag = False,
) -> None:
    """Give a run an operator's command, applied once. Example: esper runs command run-92955d72d813 cull --seed s-1"""
    order = RunOrder(
        operation,
        seed,
        slot,
        blueprint,
        _parameters(parameter or []),
        _epochs(epochs),
        reason,
        blend_mode=blend_mode,
        alpha_curve=curve,
        hold=hold,
    )
    fabric = open_fabric()
    ordered = order_run(fabric, run_id, order)
    document: dict[str, object] = {**asdict(ordered)}
    tell = say if json else emit_line
    tell(f"command {ordered.command_id} stands in the log for epochs {ordered.first_epoch} to {ordered.last_epoch}")
    if wait:
        outcome = await_outcome(fabric, ordered)
        applied = outcome.result == ly.COMMAND_RESULT_APPLIED
        document |= {"epoch": outcome.epoch, "applied": applied, "reason": outcome.reason, "seed_id": outcome.seed_id}
        tell(f"epoch {outcome.epoch}: " + ("applied" if applied else f"refused: {outcome.reason}"))
    if json:
        emit_json(document)
    if wait and not document["applied"]:
        raise typer.Exit(1)


def _epochs(text: str) -> tuple[int, int] | None:
    first, _, last = text.partition("-")
    if not text:
        return None
    if not first.isdecimal() or not (last or first).isdecimal():
        raise UsageError(f"{text!r} names no epochs", next_step="Write one, as 7, or a first and a last, as 7-12")
    return int(first), int(last or first)


def _parameters(texts: list[str]) -> dict[str, float]:
    found = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            found[name] = float(number)
        except ValueError as error:
            raise UsageError(f"{text!r} sets no parameter", next_step="Write --set NAME=NUMBER") from error
    return found


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    app.add_typer(runs, name="runs")
