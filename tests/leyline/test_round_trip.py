"""Every message of the contract survives its own bytes, and yesterday's bytes still decode."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esper.leyline import EVENT_TYPES, full_name, registry, short_name
from esper.leyline.v1 import commands_pb2, health_pb2, meta_pb2
from tests.leyline.messages_strategy import messages

HISTORIES = Path(__file__).parents[1] / "histories"
RELEASES = sorted((Path(__file__).parents[2] / "proto" / "released").glob("*.binpb"))


def every_message() -> list[Descriptor]:
    files = [family.DESCRIPTOR for family in registry._FAMILIES]
    files += [meta_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR]
    return [message for file in files for message in file.message_types_by_name.values()]


@pytest.mark.parametrize("descriptor", every_message(), ids=lambda d: d.name)
def test_every_message_round_trips(descriptor: Descriptor) -> None:
    """Goal: no field is lost in bytes or in JSON. Method: random messages of each type there and back."""
    cls = GetMessageClass(descriptor)

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        message = data.draw(messages(descriptor))
        encoded = message.SerializeToString(deterministic=True)
        decoded = cls.FromString(encoded)
        assert decoded == message
        assert decoded.SerializeToString(deterministic=True) == encoded
        assert json_format.Parse(json_format.MessageToJson(message), cls()) == message

    check()


def test_events_are_exactly_the_messages_with_meta_first() -> None:
    """Goal: no event is forgotten by the registry. Method: compare it with all descriptors."""
    with_meta = {d.full_name for d in every_message() if d.fields_by_number.get(1) and d.fields[0].name == "meta"}
    assert with_meta - {"esper.leyline.v1.AnyEvent"} == set(EVENT_TYPES)


def test_meta_can_be_read_without_the_type() -> None:
    """Goal: AnyEvent reads the meta of any event. Method: write a command, read it as AnyEvent."""
    command = commands_pb2.AdaptationCommand(meta=meta_pb2.EventMeta(event_id="e", sequence=7), command_id="c")
    assert meta_pb2.AnyEvent.FromString(command.SerializeToString()).meta == command.meta


def test_names_shorten_and_lengthen() -> None:
    """Goal: short and full names are inverse. Method: every event type there and back."""
    for name in EVENT_TYPES:
        assert full_name(short_name(name)) == name
    assert full_name("a.b.C") == "a.b.C"


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.stem)
def test_golden_bytes_of_released_versions_still_decode(release: Path) -> None:
    """Goal: old logs stay readable. Method: bytes recorded at a release decode to their recorded JSON."""
    golden = json.loads((HISTORIES / release.stem / "messages.json").read_text())
    assert set(golden) == event_types(release), "each event type of the release has golden bytes"
    for name, entry in golden.items():
        decoded = EVENT_TYPES[name].FromString(bytes.fromhex(entry["bytes"]))
        assert json_format.MessageToDict(decoded, preserving_proto_field_name=True) == entry["json"]


def event_types(release: Path) -> set[str]:
    """Name the events of a released contract: the messages whose first field is the meta."""
    return {
        f"{file.package}.{message.name}"
        for file in FileDescriptorSet.FromString(release.read_bytes()).file
        for message in file.message_type
        if file.package == registry.PACKAGE and any(f.name == "meta" and f.number == 1 for f in message.field)
        if message.name != "AnyEvent"
    }
