"""`esper blueprints ...`."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from esper.cli._blueprint_compile import compile_
from esper.cli._blueprint_options import (
    Id,
    Layout,
    Reason,
    Setting,
    Shape,
    known_blueprint,
    numbers,
    read_approvals,
    say_broken,
    shapes_of,
    times,
)
from esper.cli._console import JsonFlag, emit_json, emit_table, open_fabric, say
from esper.core.approvals import Approvals, refusal, registered
from esper.core.errors import NotReadyError
from esper.core.text import printable

if TYPE_CHECKING:
    from esper.karn import Blueprint, Decided, Latency

blueprints = typer.Typer(no_args_is_help=True, help="What may be grafted. Example: esper blueprints list")

_LIST_COLUMNS = ["blueprint_id", "name", "tier", "risk", "layouts", "parameters"]
_COST_COLUMNS = ["layout", "shape", "words", "parameter_count", "multiply_adds"]
_LATENCY_COLUMNS = ["profile", "layout", "shape", "batch", "samples", "p50_ms", "p95_ms", "device", "kernel_id"]


def _row(blueprint: Blueprint) -> dict[str, Any]:
    return {
        "blueprint_id": blueprint.blueprint_id,
        "name": blueprint.name,
        "tier": blueprint.tier,
        "risk": blueprint.risk,
        "layouts": list(blueprint.layouts),
        "parameters": {name: list(bounds) for name, bounds in blueprint.parameters.items()},
    }


@blueprints.command("list")
def list_(json: JsonFlag = False) -> None:
    """List the blueprints with their bounds. Example: esper blueprints list --json"""
    from esper.karn import catalogue

    rows = [_row(blueprint) for blueprint in catalogue().values()]
    say_broken()
    if json:
        emit_json(rows)
    else:
        emit_table(rows, _LIST_COLUMNS)


@blueprints.command()
def show(
    blueprint_id: Id,
    layout: Layout = None,
    shape: Shape = None,
    set_: Setting = None,
    json: JsonFlag = False,
) -> None:
    """Explain one blueprint: what it is, whether it may be grafted, what it costs and how fast it was.

    Costs are stated for one shape of each layout and the middle of the bounds, or for what the options say.
    Example: esper blueprints show BP009 --layout vector --shape 128 --set depth=2
    """
    from esper.karn import cost, middle

    blueprint = known_blueprint(blueprint_id)
    parameters = middle(blueprint) | numbers(set_ or [])
    shapes = shapes_of(blueprint, layout, shape)
    costs = [asdict(cost(blueprint, layout=one, shape=at, parameters=parameters)) for one, at in shapes]
    said, measured = _from_log(blueprint)
    if measured is not None and layout is not None:
        measured = [one for one in measured if one.layout == layout and (shape is None or one.shape == shapes[0][1])]
    document = {
        **_row(blueprint),
        "description": blueprint.description,
        "stage": blueprint.stage,
        "quarantine_only": blueprint.quarantine_only,
        "approval_required": blueprint.approval_required,
        **_standing(blueprint, said),
        "costs": costs,
        "costs_for": parameters,
        "latencies": None if measured is None else [asdict(one) for one in measured],
    }
    if json:
        emit_json(document)
        return
    tables = ("costs", "latencies")
    emit_table([{"field": k, "value": v} for k, v in document.items() if k not in tables], ["field", "value"])
    emit_table([one | {"shape": times(one["shape"])} for one in costs], _COST_COLUMNS, title="costs for one sample")
    if measured is not None:
        rows = [asdict(one) | {"shape": times(one.shape)} for one in measured]
        emit_table(rows, _LATENCY_COLUMNS, title="measured latencies")


@blueprints.command()
def approve(blueprint_id: Id, reason: Reason = "", json: JsonFlag = False) -> None:
    """Vouch for a blueprint as it is described now, so that it may be grafted. Example: esper blueprints approve BP036

    A blueprint that changes has to be approved again.
    """
    from esper.karn import approve as approve_blueprint

    _decide(approve_blueprint, blueprint_id, reason, json=json)


@blueprints.command()
def withdraw(blueprint_id: Id, reason: Reason = "", json: JsonFlag = False) -> None:
    """Take a blueprint from use, whatever its tier, until it is approved again; what is grafted stays where it is.

    Example: esper blueprints withdraw BP009
    """
    from esper.karn import withdraw as withdraw_blueprint

    _decide(withdraw_blueprint, blueprint_id, reason, json=json)


def _from_log(blueprint: Blueprint) -> tuple[Approvals | None, list[Latency] | None]:
    """Return what the log says of the blueprint; None, with a word about it, where there is no log to ask."""
    from esper.karn import latencies

    try:
        with open_fabric() as fabric:
            return read_approvals(fabric), latencies(fabric, blueprint.blueprint_id)
    except NotReadyError as error:
        say(f"without the log nothing is known of approvals and latencies: {error}")
        return None, None


def _standing(blueprint: Blueprint, approvals: Approvals | None) -> dict[str, Any]:
    if approvals is None:
        return {"may_be_grafted": None, "refused": None, "decided_by": None, "decision_reason": None}
    # What nobody registered yet is judged as it is described here: Karn will register it so.
    known = registered([blueprint.descriptor()], approvals)
    refused, standing = refusal(known, blueprint.blueprint_id), known[blueprint.blueprint_id]
    word = standing.approval or standing.withdrawal
    return {
        "may_be_grafted": refused is None,
        "refused": None if refused is None else str(refused),
        "decided_by": word.who if word else None,
        "decision_reason": word.reason if word else None,
    }


def _decide(decide: Callable[..., Decided], blueprint_id: str, reason: str, *, json: bool) -> None:
    from esper.karn import catalogue

    with open_fabric() as fabric:
        decided = decide(fabric, catalogue(), blueprint_id, who=_login(), reason=reason)
    if json:
        emit_json(asdict(decided))
    else:
        emit_table([{"field": k, "value": v} for k, v in asdict(decided).items()], ["field", "value"])
    name = f"{decided.blueprint_id} ({decided.name})"
    now = f"may not be grafted, {decided.refused_now}" if decided.refused_now else "may be grafted"
    say(f"{name} {now}" if decided.changed else f"nothing was appended: {name} {now} already")


def _login() -> str:
    """Return the operator's login name; one whom no user database knows is named by number."""
    try:
        return printable(getpass.getuser())
    except (KeyError, OSError):  # before Python 3.13 a missing entry is a KeyError
        return f"uid-{os.getuid()}"


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    blueprints.command("compile")(compile_)
    app.add_typer(blueprints, name="blueprints")
