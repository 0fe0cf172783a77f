"""What the commands about blueprints share: how a blueprint, a shape and parameters are named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from esper.cli._console import say
from esper.cli._train import pairs
from esper.core.approvals import Approvals
from esper.core.errors import UsageError
from esper.oona import BlueprintBoard, Fabric

if TYPE_CHECKING:
    from esper.karn import Blueprint

Id = Annotated[str, typer.Argument(help="Id, BP009 for example.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the event.")]
Layout = Annotated[str | None, typer.Option(help="vector, sequence, map1d or map2d.")]
Shape = Annotated[str | None, typer.Option(help="Shape of one sample, 32x64 for example; needs --layout.")]
Setting = Annotated[list[str] | None, typer.Option("--set", help="NAME=NUMBER; may be given again.")]


def say_broken() -> None:
    """Say which installed blueprints are not offered, and why."""
    from esper.karn import broken_plugins

    for plugin in broken_plugins():
        say(str(plugin))


def known_blueprint(blueprint_id: str) -> Blueprint:
    """Return the blueprint of this id; raises UsageError with those that are known."""
    from esper.karn import catalogue

    known = catalogue()
    if blueprint_id not in known:
        say_broken()
        raise UsageError(
            f"there is no blueprint {blueprint_id!r}",
            cause=f"known are {', '.join(known)}",
            next_step="`esper blueprints list` shows what each does",
        )
    return known[blueprint_id]


def shapes_of(
    blueprint: Blueprint, layout: str | None, shape: str | None, *, every: bool = True
) -> list[tuple[str, tuple[int, ...]]]:
    """Return layouts with a shape of one sample for each, stated ones where none was given."""
    from esper.karn import STATED_SHAPES

    if layout is None:
        if shape is not None:
            raise UsageError("--shape needs --layout", cause="each layout reads a shape in its own way")
        chosen = blueprint.layouts if every else blueprint.layouts[:1]
        return [(one, STATED_SHAPES[one]) for one in chosen]
    if shape is None and layout in STATED_SHAPES:
        return [(layout, STATED_SHAPES[layout])]
    return [(layout, _sizes(shape or ""))]


def _sizes(text: str) -> tuple[int, ...]:
    parts = text.split("x")
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"{text!r} is no shape", cause="sizes are whole numbers", next_step="Write 64, or 32x64")
    return tuple(int(part) for part in parts)


def times(shape: tuple[int, ...]) -> str:
    """Return a shape as people write it."""
    return "x".join(str(size) for size in shape)


def numbers(values: list[str]) -> dict[str, float]:
    """Return {name: number} of "name=number" words."""
    return pairs(values, "--set")


def read_approvals(fabric: Fabric) -> Approvals:
    """Return what the log says of every blueprint now."""
    with BlueprintBoard(fabric) as board:
        return board.read()
