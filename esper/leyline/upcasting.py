"""Events of older versions, brought to the version that this code knows: one pure step for each version.

Protobuf lets old and new code read each other as long as fields are only added, and such a change needs no new
version. A version counts what fields *mean* (`EventMeta.schema_version`, from 1): where a meaning changes, the type
gets the next version, and a step that says of an event of the old one what it would have been in the new. A log is
never rewritten; whoever decodes a record brings its message to the current version (G. Young, "Versioning in an
Event Sourced System", 2017, calls this upcasting). Whoever only verifies a record needs no version at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from esper.leyline.registry import EVENT_TYPES, EventMessage, full_name, type_of

#: Changes a message of version n, its own copy, into what it would have been in version n + 1.
Step = Callable[[Any], None]
_WORDS_MAX: Final = 200


class ContractError(Exception):
    """A contract, or the chain of its versions, cannot be used; `what` names it, `cause` says why."""

    def __init__(self, what: str, cause: str) -> None:
        super().__init__(f"{what}: {cause}")
        self.what = what
        self.cause = cause


class UpcastError(ValueError):
    """An event has no form in the current version; the text says why."""


@dataclass(frozen=True)
class Upcaster:
    """The step of one type from `version` to the next.

    `step` gets a message that nobody else holds and changes it in place. It depends on nothing but that message,
    so that a log gives the same events whenever it is read, and leaves `meta` alone.
    """

    type_name: str
    version: int
    step: Step


#: Full name -> version, of each of Esper's own types that has had more than one. One line a type, and below it one
#: `Upcaster` for each version that came before.
SHIPPED_VERSIONS: Final[Mapping[str, int]] = {}
SHIPPED_UPCASTERS: Final[Sequence[Upcaster]] = ()

#: Full name of a type -> its steps, from version 1 on. A type that is not here has had one version.
Chains = Mapping[str, tuple[Step, ...]]


def build_chains(versions: Mapping[str, int], upcasters: Iterable[Upcaster], *, known: Iterable[str]) -> Chains:
    """Return the steps of every type in `versions`, each from version 1 to the current one; pure.

    Raises:
        ContractError: a type is not `known`, a version is none, or a step is missing, there twice, or leads beyond
            the current version.
    """
    stated = {full_name(name): version for name, version in versions.items()}
    steps: dict[str, dict[int, Step]] = {name: {} for name in stated}
    for one in upcasters:
        _take(one, full_name(one.type_name), stated, steps)
    types = frozenset(known)
    for name, version in stated.items():
        if name not in types:
            raise ContractError(f"version {version} of {name}", "no event of these contracts is called so")
        if type(version) is not int or version < 1:
            raise ContractError(f"version {version!r} of {name}", "versions are whole numbers from 1 on")
        missing = [number for number in range(1, version) if number not in steps[name]]
        if missing:
            raise ContractError(
                f"the upcasters of {name}",
                f"its version is {version}, but no step leads from version {missing[0]} to {missing[0] + 1}",
            )
    return {name: tuple(steps[name][number] for number in range(1, version)) for name, version in stated.items()}


def _take(one: Upcaster, name: str, stated: Mapping[str, int], steps: dict[str, dict[int, Step]]) -> None:
    what = f"the upcaster of {name} from version {one.version}"
    current = stated.get(name, 1)
    if one.version < 1:
        raise ContractError(what, "versions begin at 1")
    if one.version >= current:
        raise ContractError(what, f"it leads to version {one.version + 1}, but the type's version is {current}")
    if one.version in steps[name]:
        raise ContractError(what, "there are two of it")
    steps[name][one.version] = one.step


#: The chains of this process; `esper.leyline.contracts` adds those of users' contracts.
_CHAINS: Final[dict[str, tuple[Step, ...]]] = dict(build_chains(SHIPPED_VERSIONS, SHIPPED_UPCASTERS, known=EVENT_TYPES))
#: Full name -> version, of types that have had more than one; looked up for each record that is decoded.
CURRENT_VERSIONS: Final[dict[str, int]] = {name: len(chain) + 1 for name, chain in _CHAINS.items()}


def add_chains(chains: Chains) -> None:
    """Make the chains of users' contracts known to this process."""
    _CHAINS.update(chains)
    CURRENT_VERSIONS.update({name: len(chain) + 1 for name, chain in chains.items()})


def remove_chains(names: Iterable[str]) -> None:
    """Forget the chains of types of users' contracts."""
    for name in names:
        _CHAINS.pop(name, None)
        CURRENT_VERSIONS.pop(name, None)


def current_version(type_name: str) -> int:
    """Return the version in which this code writes and understands a type (full name)."""
    return CURRENT_VERSIONS.get(type_name, 1)


def needs_upcast(type_name: str, schema_version: int) -> bool:
    """Return whether an event is of an older version than this code's; 0 is what version 1 was before it was set."""
    return (schema_version or 1) < current_version(type_name)


def is_understood(type_name: str, schema_version: int) -> bool:
    """Return whether this code knows a version of a type; one that it does not know was written by newer code."""
    return schema_version <= current_version(type_name)


def upcast(event: EventMessage) -> None:
    """Bring `event`, a copy of the caller's own, to the current version of its type, in place.

    Its meta stays as it was but for `schema_version`. An event of the current version is left as it is.

    Raises:
        UpcastError: a step failed or touched the meta; the event is in no state to be used.
    """
    type_name, meta = type_of(event), event.meta
    version = meta.schema_version or 1
    chain = _CHAINS.get(type_name, ())[version - 1 :]
    if not chain:
        return
    before = meta.SerializeToString(deterministic=True)
    for number, step in enumerate(chain, version):
        try:
            step(event)
        except Exception as error:  # A user's code: whatever it raises is about this one event.
            words = f"{type(error).__name__}: {error}"[:_WORDS_MAX]
            raise UpcastError(f"the step of {type_name} from version {number} failed: {words}") from error
    if meta.SerializeToString(deterministic=True) != before:
        raise UpcastError(f"the steps of {type_name} from version {version} on changed its meta")
    meta.schema_version = current_version(type_name)
