"""Which messages are events, and how a record's type word becomes a class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Protocol, cast

from google.protobuf.message import Message

from esper.leyline.v1 import (
    blueprints_pb2,
    commands_pb2,
    decisions_pb2,
    kernels_pb2,
    meta_pb2,
    operations_pb2,
    policies_pb2,
    reports_pb2,
    runs_pb2,
    safety_pb2,
    seeds_pb2,
    state_pb2,
    telemetry_pb2,
)

_FAMILIES = (
    blueprints_pb2,
    commands_pb2,
    decisions_pb2,
    kernels_pb2,
    operations_pb2,
    policies_pb2,
    reports_pb2,
    runs_pb2,
    safety_pb2,
    seeds_pb2,
    state_pb2,
    telemetry_pb2,
)
PACKAGE: Final = "esper.leyline.v1"


class EventMessage(Protocol):
    """Any Leyline message that can be a record of its own: its field 1 is `EventMeta meta`."""

    @property
    def meta(self) -> meta_pb2.EventMeta:
        """What the event carries about itself."""


#: Full name of what makes a message an event: its field 1, called `meta`, is one.
META_TYPE: Final = f"{PACKAGE}.EventMeta"


def _is_event(cls: type[Message]) -> bool:
    first = cls.DESCRIPTOR.fields_by_number.get(1)
    if first is None or first.name != "meta" or first.message_type is None:
        return False
    return bool(first.message_type.full_name == META_TYPE)


def _event_types() -> dict[str, type[Message]]:
    found: dict[str, type[Message]] = {}
    for family in _FAMILIES:
        for name in family.DESCRIPTOR.message_types_by_name:
            cls = cast("type[Message]", getattr(family, name))
            if _is_event(cls):
                found[cls.DESCRIPTOR.full_name] = cls
    return found


#: Full name -> class of every event message: those of the contract, and those of users' contracts once loaded.
EVENT_TYPES: Final[dict[str, type[Message]]] = _event_types()
#: Full names of the events that belong to Esper itself.
SHIPPED_TYPES: Final = frozenset(EVENT_TYPES)
#: Short name -> full name of every type that users' contracts add.
_USERS_NAMES: Final[dict[str, str]] = {}
#: The same the other way.
_USERS_TYPES: Final[dict[str, str]] = {}


def add_types(types: Mapping[str, type[Message]]) -> None:
    """Make events of users' contracts (full name -> class) known to this process; their names must be free."""
    for name, cls in types.items():
        assert name not in EVENT_TYPES, "whoever adds a type looks for clashes first"
        short = name.rpartition(".")[2]
        _USERS_NAMES[short], _USERS_TYPES[name] = name, short
        EVENT_TYPES[name] = cls


def remove_types(names: Iterable[str]) -> None:
    """Forget events of users' contracts."""
    for name in names:
        _USERS_NAMES.pop(_USERS_TYPES.pop(name))
        EVENT_TYPES.pop(name)


def short_name(type_name: str) -> str:
    """Return "SystemStatePacket" for "esper.leyline.v1.SystemStatePacket", and so for users' types that are loaded."""
    return _USERS_TYPES.get(type_name) or type_name.removeprefix(f"{PACKAGE}.")


def full_name(name: str) -> str:
    """Return the full name for a short or full one."""
    return name if "." in name else _USERS_NAMES.get(name) or f"{PACKAGE}.{name}"


def type_of(message: Message | EventMessage) -> str:
    """Return the full name of a message's type."""
    return str(cast("Message", message).DESCRIPTOR.full_name)
