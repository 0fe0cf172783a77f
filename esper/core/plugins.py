"""What other packages offer by name: entry points of one group, each checked, none able to cost the others.

The code of an entry point is imported only when somebody asks for its name.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Final

from esper.core.asking import NoAnswer, answer_within
from esper.core.errors import EsperError, UsageError

#: As names stand in requests, on command lines and in metrics; without a colon, which marks `package.module:factory`.
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{1,63}")
#: What a package imports may be large: torch alone takes seconds on a loaded machine.
_IMPORT_SECONDS_MAX: Final = 60.0
_logger = logging.getLogger("esper.core.plugins")


@dataclass(frozen=True)
class UnofferedPlugin:
    """An entry point that is not offered, and why."""

    entry_point: str
    cause: str

    def __str__(self) -> str:
        return f"entry point {self.entry_point!r} is not offered: {self.cause}"


@dataclass(frozen=True)
class Offers:
    """Entry points of one group by name, and those whose name cannot be used."""

    named: Mapping[str, EntryPoint]
    unoffered: tuple[UnofferedPlugin, ...]


@functools.cache
def installed(group: str, reserved: frozenset[str] = frozenset()) -> Offers:
    """Return what the installed packages offer in `group`; looked up once in a process, which logs what is unusable.

    `reserved` are the names of what comes with Esper.
    """
    found = offers(entry_points(group=group), reserved)
    for plugin in found.unoffered:
        _logger.warning("%s: %s", group, plugin)
    return found


def offers(points: Iterable[EntryPoint], reserved: Collection[str]) -> Offers:
    """Return the usable entry points, in an order that does not depend on the installation; imports nothing.

    Of two with one name the first in that order has it; the same one, found twice on the path, is one.
    """
    named: dict[str, EntryPoint] = {}
    unoffered = []
    for point in sorted(points, key=lambda point: (point.name, point.value)):
        if point.name in named and point == named[point.name]:
            continue
        problem = _problem(point.name, taken=named, reserved=reserved)
        if problem:
            unoffered.append(UnofferedPlugin(shown(point), problem))
        else:
            named[point.name] = point
    return Offers(MappingProxyType(named), tuple(unoffered))


def _problem(name: str, *, taken: Collection[str], reserved: Collection[str]) -> str:
    if not _NAME.fullmatch(name):
        return "a name is 2 to 64 letters, digits, dots, dashes and underscores, and begins with a letter"
    if name in reserved:
        return f"the name {name} is that of one that comes with Esper"
    if name in taken:
        return f"the name {name} is taken by another entry point"
    return ""


def load(kind: str, point: EntryPoint) -> object:
    """Return what the entry point names, imported now.

    Raises:
        UsageError: it cannot be imported, or not within a minute; the message names it, its package and the cause.
    """
    try:
        named: object = answer_within(_IMPORT_SECONDS_MAX, point.load)
    except (EsperError, NoAnswer) as error:
        raise unusable(kind, point, f"importing it failed: {error}") from error
    return named


def unusable(kind: str, point: EntryPoint, cause: str) -> UsageError:
    """Return the error for an entry point that does not keep what its group promises."""
    return UsageError(
        f"the {kind} {point.name!r} of {distribution(point) or 'an unnamed package'} cannot be used",
        cause=f"entry point {shown(point)!r}: {cause}",
        next_step="docs/plugins.md says what an entry point must name; correct or remove the package",
    )


def distribution(point: EntryPoint) -> str:
    """Return the name of the distribution that brings the entry point, or nothing where that is not known."""
    return point.dist.name if point.dist is not None else ""


def shown(point: EntryPoint) -> str:
    """Return the entry point as its package writes it: "name = module:attribute"."""
    return f"{point.name} = {point.value}"
