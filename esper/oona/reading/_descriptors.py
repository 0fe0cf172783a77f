"""The contract as a protobuf descriptor set, so that any Kafka tool can decode our records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from esper.core.errors import OperationFailed
from esper.core.ids import sha256_hex
from esper.leyline import EVENT_TYPES


@dataclass(frozen=True)
class DescriptorFile:
    """A descriptor set that was written."""

    path: str
    sha256: str
    #: Names of the .proto files in it, each after those that it imports.
    files: tuple[str, ...]
    #: Full names of the messages that a record's value can be; its header `type` says which.
    messages: tuple[str, ...]


def descriptor_set() -> bytes:
    """Return the serialised FileDescriptorSet of every event type with all that it imports; the same bytes always.

    Files stand after those that they import, as protoc writes them with --include_imports.
    """
    files: dict[str, FileDescriptorProto] = {}
    for name in sorted(EVENT_TYPES):
        for file in _with_imports(EVENT_TYPES[name].DESCRIPTOR.file):
            if file.name not in files:
                proto = FileDescriptorProto()
                file.CopyToProto(proto)
                files[file.name] = proto
    return FileDescriptorSet(file=files.values()).SerializeToString(deterministic=True)


def write_descriptor_set(path: Path) -> DescriptorFile:
    """Write the descriptor set to `path` and return what is in it.

    Raises:
        OperationFailed: the file cannot be written.
    """
    content = descriptor_set()
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OperationFailed(
            f"the descriptor set was not written to {path}", cause=str(error.strerror), next_step="Name another file"
        ) from error
    names = tuple(file.name for file in FileDescriptorSet.FromString(content).file)
    return DescriptorFile(str(path), sha256_hex(content), names, tuple(sorted(EVENT_TYPES)))


def _with_imports(file: Any) -> Iterator[Any]:  # noqa: ANN401 - FileDescriptor, which the stubs have twice
    for needed in file.dependencies:
        yield from _with_imports(needed)
    yield file
