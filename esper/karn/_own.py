"""Blueprints of other packages, found by the entry point group `esper.blueprints`.

An entry point names a `Blueprint`, or several in a list or tuple. They are declarative like those that are shipped:
what a body may be made of is the vocabulary of `esper.core.kernel`, so a package can bring new shapes, never new code.
One that cannot be used costs itself and nobody else, whether it raises, leaves the process or never answers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from esper.core.asking import NoAnswer, answer_within
from esper.core.errors import EsperError
from esper.core.text import printable
from esper.karn._blueprint import Blueprint
from esper.karn._errors import BlueprintError
from esper.karn._own_checks import own_copy

ENTRY_POINTS: Final = "esper.blueprints"
#: For importing a package, torch perhaps with it on a busy machine, and checking all that it offers.
LOAD_SECONDS_MAX: Final = 20.0


@dataclass(frozen=True)
class BrokenPlugin:
    """An entry point whose blueprints are not offered, and why."""

    entry_point: str
    cause: str

    def __str__(self) -> str:
        return f"entry point {self.entry_point!r} is not offered: {self.cause}"


def installed() -> list[EntryPoint]:
    """Return the entry points of every installed package, in an order that does not depend on the installation."""
    return sorted(entry_points(group=ENTRY_POINTS), key=lambda point: (point.name, point.value))


def load_own(
    points: Iterable[EntryPoint], taken: Collection[str], *, seconds: float = LOAD_SECONDS_MAX
) -> tuple[list[Blueprint], list[BrokenPlugin]]:
    """Return the blueprints that the entry points name, and those entry points that cannot be used.

    An entry point is taken whole or not at all. `taken` are ids that others have; among entry points the first has it.
    What is returned is plain data (`own_copy`). Each entry point has `seconds` for all of it.
    """
    found: dict[str, Blueprint] = {}
    broken = []
    for point in points:
        others = frozenset((*taken, *found))
        try:
            found.update(answer_within(seconds, partial(_loaded, point, others)))
        except (EsperError, NoAnswer) as error:
            name = printable(f"{point.name} = {point.value}", limit=200)
            broken.append(BrokenPlugin(name, printable(str(error))))
    return list(found.values()), broken


def _loaded(point: EntryPoint, taken: Collection[str]) -> dict[str, Blueprint]:
    offered = [own_copy(blueprint, taken) for blueprint in _offered(point)]
    found = {blueprint.blueprint_id: blueprint for blueprint in offered}
    if len(found) < len(offered):
        raise BlueprintError("two of its blueprints have one id", next_step="give each an id of its own")
    return found


def _offered(point: EntryPoint) -> Sequence[Blueprint]:
    loaded = point.load()
    offered = list(loaded) if type(loaded) in (list, tuple) else [loaded]
    for one in offered:
        if not isinstance(one, Blueprint):
            raise BlueprintError(
                "what it names cannot be offered",
                cause=f"{type(one).__name__} is no esper.karn.Blueprint",
                next_step="docs/blueprints.md shows one",
            )
    return offered
