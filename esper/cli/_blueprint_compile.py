"""`esper blueprints compile`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from esper.cli._blueprint_options import (
    Layout,
    Setting,
    Shape,
    known_blueprint,
    numbers,
    read_approvals,
    shapes_of,
    times,
)
from esper.cli._console import JsonFlag, emit_json, emit_table, open_fabric, say
from esper.cli._progress import progress
from esper.core.approvals import refusal, registered
from esper.core.errors import OperationFailed, UsageError
from esper.oona import Fabric

if TYPE_CHECKING:
    from esper.karn import Blueprint
    from esper.leyline import messages as ly
    from esper.weatherlight import Compiled

_COMPILED_COLUMNS = ["blueprint_id", "layout", "shape", "status", "strategy", "compile_ms", "artifact_ref", "reason"]


def compile_(
    blueprint_ids: Annotated[list[str] | None, typer.Argument(help="Ids; none with --all-safe.")] = None,
    all_safe: Annotated[bool, typer.Option("--all-safe", help="Every SAFE blueprint that may be used.")] = False,
    layout: Layout = None,
    shape: Shape = None,
    all_layouts: Annotated[bool, typer.Option("--all-layouts", help="Each layout, not only the first.")] = False,
    set_: Setting = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long to wait for all of them.")] = 300.0,
    members: Annotated[bool, typer.Option(help="Start members that are missing.")] = True,
    json: JsonFlag = False,
) -> None:
    """Have the forge make kernels and wait for them; starts missing members for its own duration.

    Without more, each is made for its first layout, the shape that `show` states and the middle of its bounds.
    Example: esper blueprints compile --all-safe
    """
    from esper.projection import catch_up
    from esper.weatherlight import MAKERS, READY_SECONDS, compile_kernels, members_for_a_while

    if layout is not None and all_layouts:
        raise UsageError("--layout and --all-layouts contradict each other", next_step="Leave one of them out")

    fabric = open_fabric()
    with members_for_a_while(fabric.settings, wanted=MAKERS if members else ()) as supervisor:
        wanted = _wanted(fabric, blueprint_ids or [], all_safe=all_safe)
        requests = [
            _request(blueprint, one, at, numbers(set_ or []))
            for blueprint in wanted
            for one, at in shapes_of(blueprint, layout, shape, every=all_layouts)
        ]
        with _progress(len(requests)) as tell:
            # Members that are started here may take their time; where none is, nobody will come.
            ready = READY_SECONDS if members else seconds
            made = compile_kernels(fabric, requests, supervisor, seconds=seconds, ready_seconds=ready, tell=tell)
    catch_up(fabric)  # what was made is in SQL at once
    if json:
        emit_json([asdict(one) for one in made])
    else:
        emit_table([asdict(one) | {"shape": times(one.shape)} for one in made], _COMPILED_COLUMNS)
    if failed := [one for one in made if one.status != "finished"]:
        raise OperationFailed(
            f"{len(failed)} of {len(made)} kernels could not be made",
            cause=f"{failed[0].blueprint_id} for layout {failed[0].layout}: {failed[0].reason}",
            next_step="the table has a reason for each",
        )


def _wanted(fabric: Fabric, blueprint_ids: list[str], *, all_safe: bool) -> list[Blueprint]:
    """Return what is to be compiled; says which SAFE ones are left out, and refuses those that were named."""
    from esper.karn import BlueprintRefused, catalogue

    if all_safe == bool(blueprint_ids):
        raise UsageError(
            "it is not clear what to compile",
            cause="both ids and --all-safe were given" if all_safe else "neither ids nor --all-safe were given",
            next_step="`esper blueprints compile BP009`, or `esper blueprints compile --all-safe`",
        )
    # What nobody registered yet counts as it is described here; Karn registers it before the forge is asked.
    descriptors = [blueprint.descriptor() for blueprint in catalogue().values()]
    approvals = registered(descriptors, read_approvals(fabric))
    named = [known_blueprint(blueprint_id) for blueprint_id in blueprint_ids]
    wanted = []
    for blueprint in named or [one for one in catalogue().values() if one.tier == "SAFE"]:
        refused = refusal(approvals, blueprint.blueprint_id)
        if refused is None:
            wanted.append(blueprint)
        elif named:
            raise BlueprintRefused(refused)
        else:
            say(f"{blueprint.blueprint_id} is left out, {refused}")
    return wanted


def _request(
    blueprint: Blueprint, layout: str, shape: tuple[int, ...], given: dict[str, float]
) -> ly.KernelRequestSpec:
    from esper.core.kernel import make_request
    from esper.karn import middle

    parameters = middle(blueprint) | given
    blueprint.spec(layout=layout, shape=shape, parameters=parameters)  # what cannot be built is refused here, by name
    return make_request(blueprint.blueprint_id, parameters, layout=layout, in_shape=shape)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Compiled], None]]:
    """Show a bar on stderr where that is a terminal; yields what is to be told each end."""
    with progress("starting members", total=total) as show:
        yield lambda end: show(f"{end.blueprint_id} {end.layout} {end.status}", advance=1)
