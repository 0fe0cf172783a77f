"""Descriptors as the fast decoder gets them: with everything kept that it would lose by itself.

`ptars` turns a Timestamp into one number, saturating and without its nanoseconds, and a Struct nests without bound.
So it is given contracts in which a Timestamp is a plain message of seconds and nanoseconds, and a Struct one without
known fields. On the wire they are the same: a message of the same number.
"""

from __future__ import annotations

from typing import Final

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

SECONDS: Final = "seconds"
NANOS: Final = "nanos"
_PACKAGE: Final = "esper.projection.wire"
_FILE: Final = "esper/projection/wire.proto"
#: Number of the one field of an opaque message, which nobody writes: Arrow wants a struct to have a field.
_UNUSED_NUMBER: Final = 536_870_911
_RENAMED: Final = {f".{Timestamp.DESCRIPTOR.full_name}": f".{_PACKAGE}.Moment"} | {
    f".{cls.DESCRIPTOR.full_name}": f".{_PACKAGE}.Opaque" for cls in (Struct, Value, ListValue)
}
_DROPPED: Final = frozenset({Timestamp.DESCRIPTOR.file.name, Struct.DESCRIPTOR.file.name})


def wire_descriptor(descriptor: Descriptor) -> Descriptor:
    """Return the descriptor of the same message with the types of this module in the place of Google's."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_own_types())
    for file in _with_dependencies(descriptor.file):
        if file.name not in _DROPPED:
            pool.Add(_rewritten(file))
    return pool.FindMessageTypeByName(descriptor.full_name)


def _own_types() -> FileDescriptorProto:
    file = FileDescriptorProto(name=_FILE, package=_PACKAGE, syntax="proto3")
    optional = FieldDescriptorProto.LABEL_OPTIONAL
    moment = file.message_type.add(name="Moment")
    moment.field.add(name=SECONDS, number=1, type=FieldDescriptor.TYPE_INT64, label=optional)
    moment.field.add(name=NANOS, number=2, type=FieldDescriptor.TYPE_INT32, label=optional)
    opaque = file.message_type.add(name="Opaque")
    opaque.field.add(name="unused", number=_UNUSED_NUMBER, type=FieldDescriptor.TYPE_BOOL, label=optional)
    return file


def _with_dependencies(file: FileDescriptor) -> list[FileDescriptor]:
    """Return a file after all that it imports, each once."""
    found: dict[str, FileDescriptor] = {}

    def visit(one: FileDescriptor) -> None:
        for dependency in one.dependencies:
            visit(dependency)
        found.setdefault(one.name, one)

    visit(file)
    return list(found.values())


def _rewritten(file: FileDescriptor) -> FileDescriptorProto:
    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    kept = [name for name in proto.dependency if name not in _DROPPED]
    del proto.dependency[:], proto.public_dependency[:], proto.weak_dependency[:], proto.service[:]
    proto.dependency.extend([*kept, _FILE])
    for message in proto.message_type:
        _rename(message)
    return proto


def _rename(message: DescriptorProto) -> None:
    for field in message.field:
        if field.type_name in _RENAMED:
            field.type_name = _RENAMED[field.type_name]
    for nested in message.nested_type:
        _rename(nested)
