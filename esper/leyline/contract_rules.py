"""What a user's .proto file must keep to, so that its events can be told apart, proved and put into tables. Pure."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

from esper.leyline.registry import META_TYPE
from esper.leyline.upcasting import ContractError

_RESERVED_PACKAGES: Final = ("esper", "google")
#: They nest without bound, and become JSON where tables are made of them.
_JSON_MESSAGES: Final = frozenset(f"google.protobuf.{name}" for name in ("Struct", "Value", "ListValue"))
_PROTO3: Final = "proto3"


def check_file(file: FileDescriptorProto, what: str) -> None:
    """Refuse a file of events that breaks a rule.

    A file that does not mention `EventMeta` holds parts, and may be anybody's.

    Raises:
        ContractError: it is no proto3, has no package of its own, or a message has its meta in the wrong place.
    """
    if not any(one.type_name.endswith(".EventMeta") for message in file.message_type for one in message.field):
        return
    where = f"{what}, file {file.name}"
    if file.syntax != _PROTO3:
        raise ContractError(where, 'it does not say `syntax = "proto3";`')
    if not file.package:
        raise ContractError(where, "it has no package; names of events must be yours alone, as acme.v1.ReviewPosted is")
    if file.package.split(".")[0] in _RESERVED_PACKAGES:
        raise ContractError(where, f"the package {file.package} belongs to others")
    for message in file.message_type:
        problem = _problem_of(message)
        if problem:
            raise ContractError(f"{what}, message {file.package}.{message.name}", problem)


def _problem_of(message: DescriptorProto) -> str:
    """Return what is wrong with a message's meta, or nothing; a message without one is a part of others."""
    for one in message.field:
        is_meta = one.type_name == f".{META_TYPE}"
        if one.number == 1 and one.type_name.endswith(".EventMeta") and not is_meta:
            return f"its field {one.name} = 1 is no {META_TYPE} but {one.type_name[1:]}"
        if is_meta and one.number == 1 and one.name != "meta":
            return f"its field {one.name} = 1 is its meta, which must be called `meta`"
        if is_meta and one.number != 1 and one.name == "meta":
            return f"its meta has field number {one.number}; it must be 1"
        if is_meta and one.number == 1 and not _is_plain(one):
            return "its meta is repeated, or a member of a oneof; it must be a plain field"
    return ""


def _is_plain(one: FieldDescriptorProto) -> bool:
    return one.label == FieldDescriptorProto.LABEL_OPTIONAL and not one.HasField("oneof_index")


def is_event(descriptor: Any) -> bool:  # noqa: ANN401 - Descriptor, which the stubs have twice
    """Return whether a message of a checked file is an event."""
    first = descriptor.fields_by_number.get(1)
    return first is not None and first.message_type is not None and first.message_type.full_name == META_TYPE


def check_columns(descriptor: Any, what: str) -> None:  # noqa: ANN401 - as above
    """Refuse an event that no table can hold.

    Raises:
        ContractError: it holds itself, at any depth, or a part of it is no proto3.
    """
    problem = _unfit(descriptor, ())
    if problem:
        raise ContractError(f"{what}, message {descriptor.full_name}", problem)


def _unfit(descriptor: Any, path: tuple[str, ...]) -> str:  # noqa: ANN401 - as above
    name = str(descriptor.full_name)
    if name in _JSON_MESSAGES:
        return ""
    if name in path:
        return f"{name} holds itself, which no column can"
    file = FileDescriptorProto()
    descriptor.file.CopyToProto(file)
    if file.syntax != _PROTO3:
        return f'{name} stands in {file.name}, which does not say `syntax = "proto3";`'
    inner = (one.message_type for one in descriptor.fields if one.message_type is not None)
    return next((problem for one in inner if (problem := _unfit(one, (*path, name)))), "")
