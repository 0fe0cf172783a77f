"""What a blueprint of another package has to be: whole, plain data, and built within its own bounds."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Final

from esper.core.approvals import descriptor_digest
from esper.core.errors import UsageError
from esper.core.kernel import LAYOUTS, plan_spec
from esper.core.text import printable, shown, unprintable
from esper.karn._blueprint import Blueprint
from esper.karn._errors import BlueprintError
from esper.karn._guard import BODY_SECONDS_MAX, BrokenBody, GuardedBody

_ID: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{1,63}")
_PARAMETER: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_RESERVED: Final = re.compile(r"BP[0-9]{3}", re.IGNORECASE)
_TIERS: Final = ("SAFE", "EXPERIMENTAL", "HIGH_RISK")
_STAGE_MAX: Final = 2**32 - 1
_NAME_CHARACTERS_MAX: Final = 64
#: A blueprint that only repeats its name tells whoever has to approve it nothing.
_DESCRIPTION_MIN: Final = 20
#: Ten times the longest that is shipped; it stands in a record of the log.
_DESCRIPTION_MAX: Final = 4_000
#: As many as a request for a kernel may give.
_PARAMETERS_MAX: Final = 32
#: Features that every layout is tried with. A blueprint may refuse a size that it is too large or too small for, but
#: it has to be built for the first one, and has to answer for each.
_TRIAL_FEATURES: Final = (8, 1, 3, 64, 513)
_SHARES: Final = (0.0, 0.5, 1.0)
_FIELDS: Final[Mapping[str, type]] = {
    "blueprint_id": str,
    "name": str,
    "tier": str,
    "description": str,
    "stage": int,
    "quarantine_only": bool,
    "approval_required": bool,
}
_HELP: Final = "docs/blueprints.md says how"


def check_own(blueprint: Blueprint, taken: Collection[str]) -> None:
    """Refuse a blueprint that says too little, contradicts itself or cannot be built within its own bounds.

    It is planned for each of its layouts and several sizes, with the lowest, the middle and the highest parameters;
    no kernel is run. Bodies are asked in threads of their own, in bounded time.

    Raises:
        BlueprintError: by name, with what is wrong.
        UsageError: a body is not made of the vocabulary's words.
    """
    own_copy(blueprint, taken)


def own_copy(blueprint: Blueprint, taken: Collection[str], *, seconds: float = BODY_SECONDS_MAX) -> Blueprint:
    """Return the blueprint as plain data that `check_own` has nothing against; its bodies stay guarded.

    What was checked cannot change afterwards, and a body that raises or hangs at a size that was not tried costs
    whoever asks for that size `seconds` at most.

    Raises:
        BlueprintError, UsageError: as `check_own`.
    """
    if type(blueprint) is not Blueprint:
        raise BlueprintError(
            f"a {printable(type(blueprint).__name__)} cannot be offered",
            cause="a blueprint is data: a class of its own may answer otherwise each time that it is asked",
            next_step="make an esper.karn.Blueprint itself",
        )
    for problem in _problems(blueprint, taken):
        raise BlueprintError(f"{_called(blueprint)} cannot be offered", cause=problem, next_step=_HELP)
    name = blueprint.blueprint_id
    own = replace(
        blueprint,
        risk=float(blueprint.risk),
        parameters={one: (float(low), float(high)) for one, (low, high) in blueprint.parameters.items()},
        bodies={
            layout: GuardedBody(body, blueprint_id=name, layout=layout, seconds=seconds)
            for layout, body in blueprint.bodies.items()
        },
    )
    for layout in own.layouts:
        for features in _TRIAL_FEATURES:
            _try(own, layout, features)
    descriptor_digest(own.descriptor())  # what Karn registers can be written down
    return own


def _try(blueprint: Blueprint, layout: str, features: int) -> None:
    shape = {"vector": (features,), "sequence": (6, features), "map1d": (features, 6), "map2d": (features, 6, 6)}
    for share in _SHARES:
        parameters = {name: low + share * (high - low) for name, (low, high) in blueprint.parameters.items()}
        try:
            spec = blueprint.spec(layout=layout, shape=shape[layout], parameters=parameters)
        except BrokenBody:
            raise
        except UsageError:
            if features == _TRIAL_FEATURES[0]:
                raise
            continue
        hazards = plan_spec(spec).hazards
        if hazards and not blueprint.quarantine_only:
            raise BlueprintError(
                f"{blueprint} cannot be offered",
                cause=f"its word {hazards[0]!r} is a hazard, and it is not quarantine_only",
                next_step="leave the word out, or give it tier HIGH_RISK and its flags",
            )


def _called(blueprint: Blueprint) -> str:
    return f"blueprint {shown(blueprint.blueprint_id)} ({shown(blueprint.name)})"


def _problems(blueprint: Blueprint, taken: Collection[str]) -> Iterator[str]:
    """Yield what is wrong; whoever takes the first one only is never shown a consequence of it."""
    yield from _type_problems(blueprint)
    name = blueprint.blueprint_id
    if not _ID.fullmatch(name):
        yield "an id is 2 to 64 letters, digits, dots, dashes and underscores, and begins with a letter"
    if _RESERVED.fullmatch(name):
        yield "the ids BP000 to BP999 are reserved for those that come with Esper"
    if name in taken:
        yield f"the id {name} is taken"
    yield from _text_problems(blueprint)
    if not 0.0 <= blueprint.risk <= 1.0:
        yield f"its risk is {shown(blueprint.risk)}, not a number from 0 to 1"
    if not 0 <= blueprint.stage <= _STAGE_MAX:
        yield f"its stage is {shown(blueprint.stage)}, not a whole number from 0 on"
    yield from _tier_problems(blueprint)
    if not blueprint.bodies:
        yield f"it has no layout out of {', '.join(LAYOUTS)}"
    bodies: Mapping[str, object] = blueprint.bodies
    for layout, body in bodies.items():
        if layout not in LAYOUTS:
            yield f"no layout {shown(layout)}"
        if not callable(body):
            yield f"its body for layout {layout!r} is {shown(body)}, not a function"
    yield from _parameter_problems(blueprint.parameters)


def _type_problems(blueprint: Blueprint) -> Iterator[str]:
    # Of exactly these types, for the same reason.
    for field, kind in _FIELDS.items():
        if type(value := getattr(blueprint, field)) is not kind:
            yield f"its {field} is {shown(value)}, not of type {kind.__name__}"
    if not _is_number(blueprint.risk):
        yield f"its risk is {shown(blueprint.risk)}, not a number"
    for field in ("bodies", "parameters"):
        value = getattr(blueprint, field)
        if not isinstance(value, Mapping):
            yield f"its {field} are {shown(value)}, not a dict"
        elif strange := [key for key in value if type(key) is not str]:
            yield f"its {field} have the name {shown(strange[0])}, which is no text"


def _text_problems(blueprint: Blueprint) -> Iterator[str]:
    if not blueprint.name:
        yield "it has no name"
    if len(blueprint.name) > _NAME_CHARACTERS_MAX:
        yield f"its name has {len(blueprint.name)} characters; {_NAME_CHARACTERS_MAX} are the most"
    if len(blueprint.description) < _DESCRIPTION_MIN:
        yield f"its description says too little; {_DESCRIPTION_MIN} characters are the least"
    if len(blueprint.description) > _DESCRIPTION_MAX:
        yield f"its description has {len(blueprint.description)} characters; {_DESCRIPTION_MAX} are the most"
    for field in ("name", "description"):
        if strange := unprintable(getattr(blueprint, field)):
            yield f"its {field} holds {strange}, which cannot be printed"


def _tier_problems(blueprint: Blueprint) -> Iterator[str]:
    if blueprint.tier not in _TIERS:
        yield f"there is no tier {shown(blueprint.tier)}; the tiers are {', '.join(_TIERS)}"
    if blueprint.tier != "SAFE" and not blueprint.approval_required:
        yield f"a blueprint of tier {blueprint.tier} needs approval_required=True"
    if blueprint.tier == "HIGH_RISK" and not blueprint.quarantine_only:
        yield "a blueprint of tier HIGH_RISK needs quarantine_only=True"


def _parameter_problems(parameters: Mapping[str, object]) -> Iterator[str]:
    if len(parameters) > _PARAMETERS_MAX:
        yield f"it has {len(parameters)} parameters; {_PARAMETERS_MAX} are the most"
    for name, bounds in parameters.items():
        if not _PARAMETER.fullmatch(name):
            yield f"its parameter {shown(name)} is not 1 to 64 letters, digits and underscores, a letter first"
        if not isinstance(bounds, tuple | list) or len(bounds) != 2 or not all(map(_is_number, bounds)):
            yield f"the bounds of {name!r} are {shown(bounds)}, not two numbers"
            return
        low, high = bounds
        # Sum and difference are what the middle is reckoned with.
        if not (low <= high and math.isfinite(high - low) and math.isfinite(high + low)):
            yield f"the bounds of {name!r} are {shown(low)} to {shown(high)}"


def _is_number(value: object) -> bool:
    """Return whether it is an integer or float that a double holds; NaN and infinities are judged elsewhere."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True
