"""Which messages are events, and how a record's type word becomes a class."""

from __future__ import annotations

from typing import Final, Protocol, cast

from google.protobuf.message import Message

from esper.leyline.v1 import (
    blueprints_pb2,
    commands_pb2,
    decisions_pb2,
    kernels_pb2,
    meta_pb2,
    operations_pb2,
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


def _is_event(cls: type[Message]) -> bool:
    first = cls.DESCRIPTOR.fields_by_number.get(1)
    if first is None or first.name != "meta" or first.message_type is None:
        return False
    return bool(first.message_type.full_name == f"{PACKAGE}.EventMeta")


def _event_types() -> dict[str, type[Message]]:
    found: dict[str, type[Message]] = {}
    for family in _FAMILIES:
        for name in family.DESCRIPTOR.message_types_by_name:
            cls = cast("type[Message]", getattr(family, name))
            if _is_event(cls):
                found[cls.DESCRIPTOR.full_name] = cls
    return found


#: Full name -> class of every event message of the contract.
EVENT_TYPES: Final[dict[str, type[Message]]] = _event_types()


def short_name(type_name: str) -> str:
    """Return "SystemStatePacket" for "esper.leyline.v1.SystemStatePacket"."""
    return type_name.removeprefix(f"{PACKAGE}.")


def full_name(name: str) -> str:
    """Return the full name for a short or full one."""
    return name if "." in name else f"{PACKAGE}.{name}"


def type_of(message: Message | EventMessage) -> str:
    """Return the full name of a message's type."""
    return str(cast("Message", message).DESCRIPTOR.full_name)
