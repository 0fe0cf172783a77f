"""Who may do what on a broker that asks for a login, as the topic files state it; pure.

Deny by default: what is not granted here is refused, but for `admin`, who may do everything. One principal is
made for each source and reader that the topic files name. Per topic, writers get WRITE, readers get READ, both
get DESCRIBE; per principal there are the groups whose name begins with `esper.<principal>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from esper.core.errors import SettingsError
from esper.core.principals import ADMIN, check_principal
from esper.oona.topics._specs import ALL, TopicCatalog, TopicSpec

Operation = Literal["READ", "WRITE", "DESCRIBE", "DESCRIBE_CONFIGS"]
#: Groups of Esper; every principal may see who is in them and how far they are, which is what lag is made of.
_GROUPS: Final = "esper."
#: Groups that are not called after their principal.
_FURTHER_GROUPS: Final = {"oona": ("esper.housekeeping",)}
#: Members that are not called after the source in whose name they speak.
_MEMBERS: Final = {"housekeeper": "oona", "projector": "projection"}
#: Whoever has no subsystem of its own acts for the person at the command line.
_PERSON: Final = "cli"


@dataclass(frozen=True, order=True)
class Grant:
    """One thing that one principal may do; `prefixed`: on every resource whose name begins with `name`."""

    principal: str
    resource: Literal["topic", "group"]
    name: str
    operation: Operation
    prefixed: bool = False


def principals(catalog: TopicCatalog) -> tuple[str, ...]:
    """Return every principal by name: the writers and readers of the files, and `admin`.

    Raises:
        SettingsError: a file names a writer or reader that cannot be a principal.
    """
    named = {name for spec in catalog for name in (*spec.writers, *spec.readers)} - {ALL}
    if ADMIN in named:
        raise SettingsError(
            f"no subsystem can be called {ADMIN}",
            cause="that principal may do everything, whatever the topic files say",
            next_step="Give the writer or reader another name in the topic files",
        )
    return tuple(sorted({check_principal(name) for name in named} | {ADMIN}))


def principal_of(member: str, known: Iterable[str]) -> str:
    """Return the principal as which a process logs in: `tolaria-0` as tolaria, a command as cli."""
    subsystem = re.sub(r"-\d+$", "", member)
    principal = _MEMBERS.get(subsystem, subsystem)
    return principal if principal in known and principal != ADMIN else _PERSON


def may_write(spec: TopicSpec, principal: str) -> bool:
    """Return whether `principal` may append to the topic."""
    return principal == ADMIN or spec.admits(principal)


def may_read(spec: TopicSpec, principal: str) -> bool:
    """Return whether `principal` may read the topic."""
    return principal == ADMIN or ALL in spec.readers or principal in spec.readers


def may_describe(spec: TopicSpec, principal: str) -> bool:
    """Return whether `principal` may see that the topic is there, its ends and its settings."""
    return may_write(spec, principal) or may_read(spec, principal)


def groups_of(principal: str) -> tuple[str, ...]:
    """Return how the names of the groups begin that `principal` may join and commit for."""
    return (_GROUPS + principal, *_FURTHER_GROUPS.get(principal, ()))


def grants(catalog: TopicCatalog) -> frozenset[Grant]:
    """Return everything that is granted; `admin` needs no grant."""
    named = [name for name in principals(catalog) if name != ADMIN]
    return frozenset(grant for name in named for grant in _grants_of(name, catalog))


def _grants_of(principal: str, catalog: TopicCatalog) -> Iterator[Grant]:
    for spec in catalog:
        if may_write(spec, principal):
            yield Grant(principal, "topic", spec.name, "WRITE")
        if may_read(spec, principal):
            yield Grant(principal, "topic", spec.name, "READ")
        if may_describe(spec, principal):
            yield Grant(principal, "topic", spec.name, "DESCRIBE")
            yield Grant(principal, "topic", spec.name, "DESCRIBE_CONFIGS")
    yield Grant(principal, "group", _GROUPS, "DESCRIBE", prefixed=True)
    for prefix in groups_of(principal):
        yield Grant(principal, "group", prefix, "READ", prefixed=True)
