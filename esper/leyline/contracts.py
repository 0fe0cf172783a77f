"""Contracts of users: events of their own beside Esper's, from descriptor sets or from modules.

An entry is the path of a serialised FileDescriptorSet (`protoc -o FILE.binpb`, `buf build -o FILE.binpb`), or the
name of an importable module: generated code (`..._pb2`), a module that states `VERSIONS` and `UPCASTERS`
(see `esper.leyline.upcasting`), or both. Every message whose first field is `esper.leyline.v1.EventMeta meta = 1`
is an event. Modules are the operator's own code, named by him; nothing is ever loaded because a record asks for it.
"""

from __future__ import annotations

import hashlib
import importlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import DecodeError, Message

from esper.leyline.contract_rules import check_columns, check_file, is_event
from esper.leyline.registry import EVENT_TYPES, META_TYPE, SHIPPED_TYPES, add_types, full_name, remove_types, short_name
from esper.leyline.upcasting import (
    CURRENT_VERSIONS,
    Chains,
    ContractError,
    Upcaster,
    add_chains,
    build_chains,
    remove_chains,
)

_SUFFIX: Final = ".binpb"
#: Files that come with Esper and with protobuf; a descriptor set may hold copies of them, and those here count.
_OURS: Final = "esper/leyline/"
_WELL_KNOWN: Final = "google/protobuf/"


@dataclass(frozen=True)
class Contract:
    """What one entry adds."""

    entry: str
    types: Mapping[str, type[Message]] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)
    upcasters: tuple[Upcaster, ...] = ()


_LOADED: Final[dict[str, Contract]] = {}
_LOCK: Final = threading.Lock()


def load_contracts(entries: Sequence[str]) -> frozenset[str]:
    """Make the events of `entries` known to this process, and return their full names.

    What was loaded before is not loaded again. A refused entry adds nothing.

    Raises:
        ContractError: an entry cannot be read, breaks a rule of events, or its names or versions clash.
    """
    with _LOCK:
        keys = {_key(entry): entry for entry in entries}
        fresh = {key: _read(entry) for key, entry in keys.items() if key not in _LOADED}
        types = _types_of(fresh.values())
        add_types(types)
        try:
            chains = _chains_of(fresh.values())
        except ContractError:
            remove_types(types)
            raise
        add_chains(chains)
        _LOADED.update(fresh)
        return frozenset(name for key in keys for name in _LOADED[key].types)


def unload_contracts() -> None:
    """Forget all users' contracts; protobuf's own pool keeps their files until the process ends."""
    with _LOCK:
        # The chains first: a short name means its type only while that is known.
        remove_chains([full_name(name) for one in _LOADED.values() for name in one.versions])
        remove_types([name for one in _LOADED.values() for name in one.types])
        _LOADED.clear()


def _is_file(entry: str) -> bool:
    return entry.endswith(_SUFFIX) or "/" in entry or "\\" in entry


def _key(entry: str) -> str:
    """Return what an entry is remembered by: a file by its content, a module by its name."""
    return hashlib.sha256(_content(entry)).hexdigest() if _is_file(entry) else entry


def _content(entry: str) -> bytes:
    try:
        return Path(entry).read_bytes()
    except OSError as error:
        raise ContractError(f"contract {entry}", f"the file cannot be read: {error.strerror}") from error


def _read(entry: str) -> Contract:
    return _read_image(entry) if _is_file(entry) else _read_module(entry)


# Descriptor sets and modules ----------------------------------------------------------------------------------


def _read_image(entry: str) -> Contract:
    what = f"contract {entry}"
    try:
        image = FileDescriptorSet.FromString(_content(entry))
    except DecodeError as error:
        raise ContractError(what, "it is no FileDescriptorSet; make one with `protoc -o FILE.binpb`") from error
    found: dict[str, type[Message]] = {}
    for file in image.file:
        if file.name.startswith(_WELL_KNOWN):
            _add_where_missing(file, what)
        elif not file.name.startswith(_OURS):
            check_file(file, what)
            found |= _events_of(_added(file, what), what)
    if not found:
        raise ContractError(what, f"it has no event: no message begins with `{META_TYPE} meta = 1`")
    return Contract(entry, found)


def _read_module(entry: str) -> Contract:
    what = f"contract {entry}"
    try:
        module = importlib.import_module(entry)
    except (ImportError, TypeError, ValueError) as error:  # The latter two: what protobuf raises of generated code.
        raise ContractError(what, f"the module cannot be imported: {error}") from error
    file = getattr(module, "DESCRIPTOR", None)
    versions, upcasters = getattr(module, "VERSIONS", {}), tuple(getattr(module, "UPCASTERS", ()))
    if not isinstance(versions, Mapping) or not all(isinstance(one, Upcaster) for one in upcasters):
        raise ContractError(what, "VERSIONS maps names to versions, and UPCASTERS is a list of esper.leyline.Upcaster")
    types: dict[str, type[Message]] = {}
    if isinstance(file, FileDescriptor):
        proto = FileDescriptorProto()
        file.CopyToProto(proto)
        check_file(proto, what)
        types = _events_of(file, what)
    if not types and not versions and not upcasters:
        raise ContractError(what, "the module holds no generated events, no VERSIONS and no UPCASTERS")
    return Contract(entry, types, dict(versions), upcasters)


def _add_where_missing(file: FileDescriptorProto, what: str) -> None:
    try:
        descriptor_pool.Default().FindFileByName(file.name)
    except KeyError:
        _added(file, what)


def _added(file: FileDescriptorProto, what: str) -> FileDescriptor:
    """Put a file into protobuf's own pool, where generated code of the same file meets it."""
    bare = FileDescriptorProto()
    bare.CopyFrom(file)
    # Generated code states neither; with them the pool would take the same file for another one.
    bare.ClearField("source_code_info")
    for message in bare.message_type:
        _clear_json_names(message)
    try:
        return descriptor_pool.Default().AddSerializedFile(bare.SerializeToString())
    except TypeError as error:
        cause = str(error).removeprefix("Couldn't build proto file into descriptor pool: ")
        raise ContractError(
            f"{what}, file {file.name}",
            f"{cause}; names of files and messages must be its own, and what it imports must be in the set "
            "(`protoc --include_imports`)",
        ) from error


def _clear_json_names(message: DescriptorProto) -> None:
    for one in (*message.field, *message.extension):
        one.ClearField("json_name")
    for nested in message.nested_type:
        _clear_json_names(nested)


def _events_of(file: FileDescriptor, what: str) -> dict[str, type[Message]]:
    found = {}
    for descriptor in file.message_types_by_name.values():
        if is_event(descriptor):
            check_columns(descriptor, what)
            found[str(descriptor.full_name)] = message_factory.GetMessageClass(descriptor)
    return found


def _types_of(fresh: Iterable[Contract]) -> dict[str, type[Message]]:
    """Return the types that entries add; refuse names that mean two things.

    SQL names a type by its short name and does not tell upper case from lower.
    """
    taken = {short_name(name).lower(): f"{name}, which is known already" for name in EVENT_TYPES}
    types: dict[str, type[Message]] = {}
    for one in fresh:
        for name, cls in one.types.items():
            short = name.rpartition(".")[2].lower()
            if short in taken:
                raise ContractError(
                    f"contract {one.entry}, message {name}",
                    f"its short name is that of {taken[short]}; give it another",
                )
            taken[short] = f"{name} of {one.entry}"
            types[name] = cls
    return types


def _chains_of(fresh: Iterable[Contract]) -> Chains:
    """Return the chains that entries state, each whole; refuse those of types that are not users'."""
    versions: dict[str, int] = {}
    upcasters: list[Upcaster] = []
    for one in fresh:
        for name, version in one.versions.items():
            full = full_name(name)
            if full in versions or full in CURRENT_VERSIONS:
                raise ContractError(f"contract {one.entry}, VERSIONS", f"the version of {full} is stated twice")
            versions[full] = version
        upcasters += one.upcasters
    return build_chains(versions, upcasters, known=EVENT_TYPES.keys() - SHIPPED_TYPES)
