"""`esper policy ...`: learned versions, from the log to the right to decide."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated, Any

import typer

from esper.cli._console import JsonFlag, emit_json, emit_table, open_fabric, say
from esper.cli._train import pairs

policy = typer.Typer(no_args_is_help=True, help="Policies that were learned. Example: esper policy list")

Version = Annotated[str, typer.Argument(help="A version, as `esper policy list` names it.")]
Reason = Annotated[str, typer.Option(help="Why; it is recorded.")]
_LIST_COLUMNS = ["version", "status", "parent", "algorithm", "episodes"]
_CHECK_COLUMNS = ["name", "value", "comparison", "bound", "passed"]


@policy.command()
def train(
    parent: Annotated[str, typer.Option(help="Version to go on from; its own data are left out.")] = "",
    policies: Annotated[
        list[str] | None, typer.Option("--from", help="Name of a policy whose runs are learned from; may be repeated.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="The newest so many episodes.")] = 1_000_000,
    algorithm: Annotated[str, typer.Option(help="ppo, or awr: careful, one step of improvement.")] = "ppo",
    seed: Annotated[int, typer.Option(min=0, help="Draws first weights and the order of steps.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Passes over the episodes, at most.")] = 20,
    learning_rate: Annotated[float, typer.Option(min=1e-8, max=1.0, help="Of Adam.")] = 3e-4,
    support: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the episodes that must still judge the candidate.")
    ] = 0.1,
    adapter_rank: Annotated[
        int, typer.Option(min=0, max=32, help="Learn through low-rank adapters of the parent's actor; 0: without.")
    ] = 0,
    reward: Annotated[
        list[str] | None, typer.Option(help="NAME=WEIGHT of accuracy, loss, compute or parameters; may be repeated.")
    ] = None,
    again: Annotated[str, typer.Option(help="Train this version again from its pedigree, and compare.")] = "",
    json: JsonFlag = False,
) -> None:
    """Train a candidate on the runs in the log. Example: esper policy train --from random --seed 1

    A quarter of the runs is left for judging. The same offsets, code, seed and numerics give the same version.
    """
    from esper.weatherlight import PolicyTraining, train_again, train_policy

    fabric = open_fabric()
    if again:
        _tell(train_again(fabric, again), json)
        return
    asked = PolicyTraining(
        parent=parent,
        episodes_max=episodes,
        policies=tuple(policies or ()),
        algorithm=algorithm,
        seed=seed,
        rounds=rounds,
        learning_rate=learning_rate,
        support_min=support,
        adapter_rank=adapter_rank,
        rewards=pairs(reward or [], "--reward"),
    )
    document = train_policy(fabric, asked)
    _tell(document, json, leave_out=("rounds", "training_data", "scores"))
    if not json:
        say(f"`esper policy validate {document['version']}` holds it against the gates")


@policy.command("list")
def list_(json: JsonFlag = False) -> None:
    """List the versions and where each stands. Example: esper policy list --json"""
    from esper.weatherlight import policy_list

    rows = policy_list(open_fabric())
    if json:
        emit_json(rows)
    else:
        emit_table(rows, _LIST_COLUMNS)


@policy.command()
def show(version: Version, json: JsonFlag = False) -> None:
    """Show what a version was made from and what became of it. Example: esper policy show 2f1c0a9b7d3e"""
    from esper.weatherlight import policy_show

    document = policy_show(open_fabric(), version)
    _tell(document, json, leave_out=("training_data", "history", "hyperparameters", "scores"))
    if not json:
        for word in document["history"]:
            say(f"{word['time']} {word['event']} {word['reason']}".rstrip())
            if word.get("checks"):
                emit_table(word["checks"], _CHECK_COLUMNS)


@policy.command()
def validate(
    version: Version,
    task: Annotated[list[str] | None, typer.Option(help="Task of the paired runs; may be repeated.")] = None,
    runs: Annotated[int, typer.Option("--pairs", min=1, max=1024, help="Paired runs on each task.")] = 20,
    epochs: Annotated[int, typer.Option(min=1, max=100_000, help="Of each paired run.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Of the first pair, and of the intervals' samples.")] = 1_000_000,
    rival: Annotated[str, typer.Option(help="Whom it must beat where no learned version decides.")] = "random",
    json: JsonFlag = False,
) -> None:
    """Hold a version against the gates; exits with 1 where it fails. Example: esper policy validate 2f1c0a9b7d3e

    Signature, schema, finite values, masks, divergence, entropy, effective episodes, lower bounds of its gain from the
    log, paired fresh runs, latency: in that order, up to the first that fails. The verdict is an event.
    """
    from esper.weatherlight import KERNEL_MAKERS, Validation, interrupt_on_sigterm, members_for_a_while, validate_policy

    fabric = open_fabric()
    asked = Validation(
        version,
        tasks=tuple(task or Validation.tasks),
        pairs=runs,
        epochs=epochs,
        seed=seed,
        rival=rival,
    )
    with members_for_a_while(fabric.settings, wanted=KERNEL_MAKERS):
        interrupt_on_sigterm()
        document = validate_policy(fabric, asked)
    if json:
        emit_json(document)
    else:
        emit_table(document["checks"], _CHECK_COLUMNS)
        say(f"passed: `esper policy promote {version}`" if document["passed"] else f"failed: {document['reason']}")
    if not document["passed"]:
        raise typer.Exit(1)


@policy.command()
def promote(
    version: Version,
    override: Annotated[bool, typer.Option("--override", help="Without its gates; needs a reason.")] = False,
    reason: Reason = "",
    json: JsonFlag = False,
) -> None:
    """Let a version that passed its gates decide. Example: esper policy promote 2f1c0a9b7d3e"""
    from esper.weatherlight import promote_policy

    document = promote_policy(open_fabric(), version, issued_by=getpass.getuser(), reason=reason, override=override)
    _tell(document, json)


@policy.command()
def rollback(
    to: Annotated[str, typer.Option(help="Version to bring back; without it the one before.")] = "",
    reason: Reason = "",
    json: JsonFlag = False,
) -> None:
    """Give up the version that decides. Example: esper policy rollback --reason "it culls too soon" """
    from esper.weatherlight import roll_back_policy

    _tell(roll_back_policy(open_fabric(), issued_by=getpass.getuser(), to=to, reason=reason), json)


@policy.command()
def diff(
    one: Version,
    other: Annotated[str, typer.Argument(help="Another version.")],
    json: JsonFlag = False,
) -> None:
    """Compare two versions. Example: esper policy diff 2f1c0a9b7d3e 90ab12cd34ef"""
    from esper.weatherlight import policy_diff

    _tell(policy_diff(open_fabric(), one, other), json, leave_out=("weights",))


@policy.command()
def curves(
    version: Version,
    out: Annotated[Path | None, typer.Option(help="Draw them into this file: .png, .svg or .pdf.")] = None,
    json: JsonFlag = False,
) -> None:
    """Show how a version and those before it learned, round by round. Example: esper policy curves 2f1c0a9b7d3e

    Loss, entropy, divergences, clipped share, effective share, explained variance: Simic's telemetry of each round.
    """
    from esper.simic.training import draw_training
    from esper.weatherlight import policy_curves

    document = policy_curves(open_fabric(), version)
    if out is not None:
        draw_training(document, out)
        say(f"{out} written")
    if json:
        emit_json(document)
    elif out is None:
        rows = [{"version": entry["version"], **figures} for entry in document["line"] for figures in entry["rounds"]]
        emit_table(rows, list(dict.fromkeys(name for row in rows for name in row)))
    if document["untold"]:
        say(f"the log holds no telemetry of {', '.join(document['untold'])}")


def _tell(document: dict[str, Any], json: bool, *, leave_out: tuple[str, ...] = ()) -> None:
    if json:
        emit_json(document)
        return
    rows = [{"field": name, "value": value} for name, value in document.items() if name not in leave_out]
    emit_table(rows, ["field", "value"])


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(policy, name="policy")
