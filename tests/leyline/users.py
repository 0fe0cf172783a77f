"""Contracts as a user writes them, compiled by the real protoc."""

from __future__ import annotations

import itertools
import sys
from importlib import resources
from pathlib import Path
from typing import Any, cast

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_tools import protoc

from esper.core.contracts import shipped_protos_dir
from esper.leyline import Envelope, EventMessage, KeyRing, Record

#: protobuf's own pool keeps every file of a process for ever, so that each test has a package of its own.
_NUMBERS = itertools.count(1)

HEAD = 'syntax = "proto3";\npackage {package};\nimport "esper/leyline/v1/meta.proto";\n'
POSTED = "message ReviewPosted { esper.leyline.v1.EventMeta meta = 1; string product_id = 2; int32 stars = 3; }\n"


def new_package() -> str:
    """Return a package that no contract of this process has."""
    return f"acme{next(_NUMBERS)}.v1"


def compile_contract(
    folder: Path, text: str, *, package: str | None = None, imports: bool = False, python: bool = False
) -> tuple[Path, str]:
    """Write `text` as the .proto file of a package, in which {package} is its name, and compile it.

    Returns the descriptor set and the package; with `python`, generated code lies beside it.
    """
    name = package or new_package()
    source = folder / name.replace(".", "/") / "reviews.proto"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(text.replace("{package}", name))
    image = folder / f"{name}.binpb"
    words = [
        sys.executable,
        f"-I{folder}",
        f"-I{shipped_protos_dir()}",
        f"-I{resources.files('grpc_tools') / '_proto'}",
    ]
    words += [f"--descriptor_set_out={image}", *(["--include_imports"] if imports else [])]
    words += [f"--python_out={folder}"] if python else []
    assert protoc.main([*words, str(source.relative_to(folder))]) == 0
    return image, name


RING = KeyRing.from_secrets(b"the secret of users' contracts in tests")


def signed(event: EventMessage, *, key: str, topic: str, version: int = 1, offset: int = 0, time_ms: int = 0) -> Record:
    """Fill the meta of `event` and return its record on partition 0, signed."""
    type_name = cast("Message", event).DESCRIPTOR.full_name
    meta = event.meta
    meta.event_id, meta.type, meta.source, meta.subject = f"{offset:032x}", type_name, "acme", key
    meta.producer_id, meta.sequence, meta.schema_version = "acme:1", offset + 1, version
    value = cast("Message", event).SerializeToString(deterministic=True)
    signature = RING.sign(Envelope(topic, 0, key, type_name, value))
    headers = (("signature", signature), ("type", type_name.encode()))
    return Record(topic, 0, offset, key.encode(), value, headers, time_ms)


#: One type as it was in its versions 1, 2 and 3: fields are only ever added, and their meaning moves on.
VERSION_1 = (
    HEAD
    + """message ReviewPosted {
  esper.leyline.v1.EventMeta meta = 1;
  string product_id = 2;
  int32 stars = 3;
  string reviewer = 4;
}
"""
)
VERSION_2 = VERSION_1.removesuffix("}\n") + "  int32 points = 5;  // out of 100, from version 2 on; stars are gone\n}\n"
VERSION_3 = VERSION_2.removesuffix("}\n") + "  string given_name = 6;\n  string family_name = 7;\n}\n"


def points_from_stars(event: Any) -> None:
    """From version 1 to 2: five stars are a hundred points."""
    event.points = event.stars * 20
    event.stars = 0


def split_name(event: Any) -> None:
    """From version 2 to 3: names in two parts."""
    event.given_name, _, event.family_name = event.reviewer.partition(" ")
    event.reviewer = ""


def earlier_class(image: Path, name: str) -> type[Message]:
    """Return a message's class as a descriptor set has it, in a pool of its own: code of an earlier release."""
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(image.read_bytes()).file:
        pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(name))


def install_steps(folder: Path, package: str, *, module: str) -> str:
    """Write the module that states the versions of `package`, three of them, and return its name."""
    text = f"""from esper.leyline import Upcaster
from tests.leyline.users import points_from_stars, split_name

VERSIONS = {{"{package}.ReviewPosted": 3}}
UPCASTERS = [
    Upcaster("{package}.ReviewPosted", 2, split_name),
    Upcaster("{package}.ReviewPosted", 1, points_from_stars),
]
"""
    (folder / f"{module}.py").write_text(text)
    return module
