"""`esper runs fork` and `esper runs diff`: other decisions for a recorded run, and what they were worth."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from esper.cli._console import JsonFlag, emit_json, emit_line, emit_table, open_fabric, say
from esper.cli._runs import runs
from esper.cli._train import pairs, say_asked, say_who_trains, show_result, training_progress
from esper.core.errors import UsageError
from esper.weatherlight import SUBSYSTEMS, ForkRequest, interrupt_on_sigterm, members_for_a_while
from esper.weatherlight import train as run_training

_DIGEST_SHOWN = 12


@runs.command()
def fork(
    run_id: Annotated[str, typer.Argument(help="Id of the run.")],
    epoch: Annotated[
        int, typer.Option("--epoch", "--at", min=1, help="The fork is the recorded run up to the end of this epoch.")
    ],
    policy: Annotated[str, typer.Option(help="Policy that decides after it; the run's own.")] = "",
    parameter: Annotated[list[str] | None, typer.Option("--set", help="NAME=NUMBER for it; repeatable.")] = None,
    replicates: Annotated[
        int, typer.Option(min=0, help="Pairs of forks, one under each policy; what the policy was worth.")
    ] = 0,
    members: Annotated[bool, typer.Option(help="Start members that are missing.")] = True,
    json: JsonFlag = False,
) -> None:
    """Go on with a recorded run otherwise. Example: esper runs fork run-92955d72d813 --epoch 20 --policy noop

    The new run computes the recorded epochs again, compares each with the record, and decides anew only after them.
    With --replicates N there are N pairs of them, under the run's own policy and under --policy. Both of a pair draw
    alike after the fork, each pair otherwise; what is shown is the mean difference with its interval of 95 %.
    """
    from esper.projection import catch_up
    from esper.weatherlight import check_replicates, fork_request, replicate

    fabric = open_fabric()
    request = fork_request(fabric, run_id, epoch, policy=policy, policy_parameters=pairs(parameter or [], "--set"))
    if replicates:
        check_replicates(request, replicates)
    with (
        training_progress(request.origin.epochs) as progress,
        members_for_a_while(fabric.settings, wanted=tuple(SUBSYSTEMS) if members else ()) as supervisor,
    ):
        interrupt_on_sigterm()
        say_who_trains(fabric, supervisor.names)

        def train_one(asked: ForkRequest) -> dict[str, Any]:
            return run_training(fabric, asked, supervisor, progress=progress, on_request=say_asked)

        document = replicate(request, replicates, train_one) if replicates else train_one(request)
    catch_up(fabric)
    if json:
        emit_json(document)
        return
    if replicates:
        _show_effects(document)
        return
    show_result(document)
    say(f"`esper runs diff {run_id} {document['run_id']}` shows what came of it")


@runs.command()
def diff(
    a: Annotated[str, typer.Argument(help="Id of a run.")],
    b: Annotated[str, typer.Argument(help="Id of another.")],
    json: JsonFlag = False,
) -> None:
    """Compare two runs, epoch by epoch and at their ends. Example: esper runs diff run-92955d72d813 run-b769e2022f64"""
    from esper.projection import fresh_query, run_document
    from esper.weatherlight import compare_runs

    with fresh_query(open_fabric()) as query:
        documents = {run_id: run_document(query, run_id) for run_id in (a, b)}
    for run_id, found in documents.items():
        if found is None:
            raise UsageError(f"there is no run {run_id!r} in the log", next_step="`esper runs list` shows all runs")
    document = compare_runs(documents[a] or {}, documents[b] or {})
    if json:
        emit_json(document)
    else:
        _show(document)


def _show_effects(document: dict[str, Any]) -> None:
    a, b = document["a"]["policy"], document["b"]["policy"]
    emit_line(f"{document['replicates']} pairs after epoch {document['forked_epochs']}: {b} less {a}")
    rows = [{"figure": name, **effect} for name, effect in document["effects"].items()]
    emit_table(rows, ["figure", "mean", "low", "high", "verdict"], title=document["interval"])
    figures = ("accuracy", "loss")
    pairs = [
        {"replicate": pair["replicate"], **{f"{arm} {name}": pair[arm][name] for name in figures for arm in ("a", "b")}}
        for pair in document["pairs"]
    ]
    emit_table(pairs, ["replicate", *(f"{arm} {name}" for name in figures for arm in ("a", "b"))], title="pairs")


def _show(document: dict[str, Any]) -> None:
    first = document["first_difference"]
    if first is None:
        emit_line(f"the {document['equal_epochs']} epochs that both have are equal")
    else:
        equal = document["equal_epochs"]
        begin = f"equal up to epoch {equal}; then" if equal else "they differ from the first epoch on, in"
        emit_line(f"{begin} {first['field']}: {first['a']} and {first['b']}")
    emit_table([{"asked": name, **both} for name, both in document["request"].items()], ["asked", "a", "b"])
    emit_table([{"end": name, **both} for name, both in document["end"].items()], ["end", "a", "b", "difference"])
    rows = [
        {"epoch": row["epoch"], "field": name, "a": _short(both["a"]), "b": _short(both["b"])}
        for row in document["epochs"]
        for name, both in row.items()
        if name != "epoch"
    ]
    emit_table(rows, ["epoch", "field", "a", "b"], title="epochs that differ")


def _short(value: object) -> object:
    return value[:_DIGEST_SHOWN] if isinstance(value, str) and len(value) > 2 * _DIGEST_SHOWN else value


def register(_: typer.Typer) -> None:
    """Have these commands among those of `esper runs`, which are added by their own module."""
