"""What the commands about blueprints share: how a blueprint, a shape and parameters are named."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final

import typer

from esper.cli._console import say
from esper.cli._train import pairs
from esper.core.approvals import Approvals
from esper.core.errors import UsageError
from esper.core.text import shown
from esper.oona import BlueprintBoard, Fabric

if TYPE_CHECKING:
    from esper.karn import Blueprint

Id = Annotated[str, typer.Argument(help="Id, BP009 for example.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the event.")]
Layout = Annotated[str | None, typer.Option(help="vector, sequence, map1d or map2d.")]
Shape = Annotated[str | None, typer.Option(help="Shape of one sample, 32x64 for example; needs --layout.")]
Setting = Annotated[list[str] | None, typer.Option("--set", help="NAME=NUMBER; may be given again.")]


#: More digits than any size has, and few enough that Python reads them at once.
_SHAPE: Final = re.compile(r"[0-9]{1,9}(x[0-9]{1,9})*")


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
            f"there is no blueprint {shown(blueprint_id)}",
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
    if layout not in STATED_SHAPES:
        raise UsageError(f"there is no layout {layout!r}", cause=f"layouts are {', '.join(STATED_SHAPES)}")
    return [(layout, STATED_SHAPES[layout] if shape is None else _sizes(shape))]


def _sizes(text: str) -> tuple[int, ...]:
    if not _SHAPE.fullmatch(text):
        raise UsageError(
            f"{shown(text)} is no shape",
            cause="sizes are whole numbers of up to nine digits 0 to 9",
            next_step="Write 64, or 32x64",
        )
    return tuple(int(part) for part in text.split("x"))


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
