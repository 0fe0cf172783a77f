"""Blueprints of other packages, found by the entry point group `esper.blueprints`.

An entry point names a `Blueprint`, or several in a list or tuple. They are declarative like those that are shipped:
what a body may be made of is the vocabulary of `esper.core.kernel`, so a package can bring new shapes, never new code.
One that cannot be used costs itself and nobody else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from esper.core.errors import EsperError
from esper.core.kernel import LAYOUTS, plan_spec
from esper.karn._blueprint import Blueprint
from esper.karn._errors import BlueprintError

ENTRY_POINTS: Final = "esper.blueprints"

_ID: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{1,63}")
_RESERVED: Final = re.compile(r"BP[0-9]{3}", re.IGNORECASE)
_TIERS: Final = ("SAFE", "EXPERIMENTAL", "HIGH_RISK")
_STAGE_MAX: Final = 2**32 - 1
#: A blueprint that only repeats its name tells whoever has to approve it nothing.
_DESCRIPTION_MIN: Final = 20
#: What each layout is tried with: shapes of one sample, as hosts have them.
_TRIAL_SHAPES: Final[Mapping[str, tuple[int, ...]]] = {
    "vector": (8,),
    "sequence": (6, 8),
    "map1d": (8, 6),
    "map2d": (8, 6, 6),
}


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


def load_own(points: Iterable[EntryPoint], taken: Collection[str]) -> tuple[list[Blueprint], list[BrokenPlugin]]:
    """Return the blueprints that the entry points name, and those entry points that cannot be used.

    An entry point is taken whole or not at all. `taken` are ids that others have; among entry points the first has it.
    """
    found: dict[str, Blueprint] = {}
    broken = []
    for point in points:
        name = f"{point.name} = {point.value}"
        try:
            offered = _offered(point)
            for blueprint in offered:
                check_own(blueprint, {*taken, *found})
            found.update(_by_id(offered))
        except EsperError as error:
            broken.append(BrokenPlugin(name, str(error)))
        except Exception as error:  # noqa: BLE001 - somebody else's code may raise anything; it must not cost the others
            broken.append(BrokenPlugin(name, f"{type(error).__name__}: {error}"[:500]))
    return list(found.values()), broken


def check_own(blueprint: Blueprint, taken: Collection[str]) -> None:
    """Refuse a blueprint that says too little, contradicts itself or cannot be built within its own bounds.

    It is planned for each of its layouts with the lowest, the middle and the highest parameters; nothing is run.

    Raises:
        BlueprintError: by name, with what is wrong.
        UsageError: a body is not made of the vocabulary's words.
    """
    for problem in _problems(blueprint, taken):
        raise BlueprintError(f"{blueprint} cannot be offered", cause=problem, next_step="docs/blueprints.md says how")
    for layout in blueprint.layouts:
        for share in (0.0, 0.5, 1.0):
            parameters = {name: low + share * (high - low) for name, (low, high) in blueprint.parameters.items()}
            spec = blueprint.spec(layout=layout, shape=_TRIAL_SHAPES[layout], parameters=parameters)
            hazards = plan_spec(spec).hazards
            if hazards and not blueprint.quarantine_only:
                raise BlueprintError(
                    f"{blueprint} cannot be offered",
                    cause=f"its word {hazards[0]!r} is a hazard, and it is not quarantine_only",
                    next_step="leave the word out, or give it tier HIGH_RISK and its flags",
                )


def _offered(point: EntryPoint) -> Sequence[Blueprint]:
    loaded = point.load()
    offered = list(loaded) if isinstance(loaded, list | tuple) else [loaded]
    for one in offered:
        if not isinstance(one, Blueprint):
            raise BlueprintError(
                "what it names cannot be offered",
                cause=f"{type(one).__name__} is no esper.karn.Blueprint",
                next_step="docs/blueprints.md shows one",
            )
    return offered


def _by_id(offered: Sequence[Blueprint]) -> dict[str, Blueprint]:
    found = {blueprint.blueprint_id: blueprint for blueprint in offered}
    if len(found) < len(offered):
        raise BlueprintError("two of its blueprints have one id", next_step="give each an id of its own")
    return found


def _problems(blueprint: Blueprint, taken: Collection[str]) -> Iterator[str]:
    name = blueprint.blueprint_id
    if not _ID.fullmatch(name):
        yield "an id is 2 to 64 letters, digits, dots, dashes and underscores, and begins with a letter"
    if _RESERVED.fullmatch(name):
        yield "the ids BP000 to BP999 are reserved for those that come with Esper"
    if name in taken:
        yield f"the id {name} is taken"
    if not blueprint.name:
        yield "it has no name"
    if len(blueprint.description) < _DESCRIPTION_MIN:
        yield f"its description says too little; {_DESCRIPTION_MIN} characters are the least"
    if not 0.0 <= blueprint.risk <= 1.0:
        yield f"its risk is {blueprint.risk}, not a number from 0 to 1"
    if not 0 <= blueprint.stage <= _STAGE_MAX:
        yield f"its stage is {blueprint.stage}, not a whole number from 0 on"
    yield from _tier_problems(blueprint)
    if not blueprint.layouts or (unknown := [one for one in blueprint.layouts if one not in LAYOUTS]):
        yield f"it has no layout out of {', '.join(LAYOUTS)}" if not blueprint.layouts else f"no layout {unknown[0]!r}"
    for parameter, (low, high) in blueprint.parameters.items():
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            yield f"the bounds of {parameter!r} are {low} to {high}"


def _tier_problems(blueprint: Blueprint) -> Iterator[str]:
    if blueprint.tier not in _TIERS:
        yield f"there is no tier {blueprint.tier!r}; the tiers are {', '.join(_TIERS)}"
    if blueprint.tier != "SAFE" and not blueprint.approval_required:
        yield f"a blueprint of tier {blueprint.tier} needs approval_required=True"
    if blueprint.tier == "HIGH_RISK" and not blueprint.quarantine_only:
        yield "a blueprint of tier HIGH_RISK needs quarantine_only=True"
