"""A typed call for every event, and keys that nobody can get wrong."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any, cast

import pytest
from google.protobuf.message import Message

from esper.core.errors import UsageError
from esper.core.ids import new_event_id
from esper.leyline import EVENT_TYPES, EventMessage, short_name
from esper.leyline import messages as ly
from esper.oona import Fabric, OonaClient, Pending, Receipt, TopicSpec, key_of

#: What a topic file calls a key, and the fields that it may stand in.
KEY_FIELDS = {
    "run_id": ("run_id", "training_run_id"),
    "kernel_id": ("kernel_id", "benchmark.kernel_id"),
    "policy_id": ("policy_id",),
    "blueprint_id": ("blueprint_id", "descriptor.blueprint_id"),
}


def calls() -> dict[type[Message], str]:
    """Return the call of each message type by the annotation of its argument."""
    found: dict[type[Message], str] = {}
    for name, call in inspect.getmembers(OonaClient, inspect.isfunction):
        if name.startswith("publish_"):
            hints = typing.get_type_hints(call)
            cls = hints["message"]
            assert cls not in found, f"{name} and {found.get(cls)} publish the same"
            assert hints["return"] is (Pending if cls is ly.TelemetryPacket else Receipt)
            found[cls] = name
    return found


def filled(cls: type[Message], spec: TopicSpec, key: str) -> EventMessage:
    """Return a message of a type whose key field says `key`."""
    message = cls()
    for path in KEY_FIELDS.get(spec.key, ()):
        *parents, last = path.split(".")
        target: Any = message
        for parent in parents:
            target = getattr(target, parent, None)
        if target is not None and last in target.DESCRIPTOR.fields_by_name:
            setattr(target, last, key)
    return cast("EventMessage", message)


def test_every_event_of_the_contract_has_its_call() -> None:
    """Goal: no event is published by hand. Method: compare the calls' arguments with the contract's events."""
    assert {short_name(cls.DESCRIPTOR.full_name) for cls in calls()} == {short_name(name) for name in EVENT_TYPES}


def test_the_brief_s_calls_keep_their_names() -> None:
    """Goal: who knows the brief finds his way. Method: look up the calls of the families that it names."""
    by_name = {name: short_name(cls.DESCRIPTOR.full_name) for cls, name in calls().items()}
    for name, event in {
        "publish_state": "SystemStatePacket",
        "publish_adaptation_command": "AdaptationCommand",
        "publish_field_report": "FieldReport",
        "publish_telemetry": "TelemetryPacket",
        "publish_kernel_prefetch_request": "KernelPrefetchRequest",
        "publish_kernel_artifact_ready": "KernelArtifactReady",
        "publish_kernel_artifact_error": "KernelArtifactError",
        "publish_kernel_catalog_update": "KernelCatalogUpdate",
        "publish_emergency_signal": "EmergencySignal",
    }.items():
        assert by_name[name] == event


@pytest.mark.parametrize("type_name", sorted(EVENT_TYPES))
def test_the_key_is_the_one_that_the_topic_file_names(fabric: Fabric, type_name: str) -> None:
    """Goal: nobody can mis-key an event. Method: fill the field that its topic file names; empty it."""
    cls, spec = EVENT_TYPES[type_name], fabric.topics.topic_of(type_name)
    if spec.key in KEY_FIELDS:
        key = new_event_id()
        assert key_of(filled(cls, spec, key), source="tolaria") == key
        with pytest.raises(UsageError, match=f"{short_name(type_name)} cannot be published: the field that gives its"):
            key_of(cast("EventMessage", cls()), source="tolaria")
    elif spec.key == "source subsystem":
        assert key_of(cast("EventMessage", cls()), source="tolaria") == "tolaria"
    elif spec.name == "dead-letters":
        about: Any = cls(topic="runs", partition=3, offset=17)
        assert key_of(about, source="tolaria") == "runs-3-17"
        with pytest.raises(UsageError, match="the field that gives its key is empty"):
            key_of(cast("EventMessage", cls()), source="tolaria")
    else:
        assert spec.name == "operations"


def test_keys_of_the_fabric_s_own_events() -> None:
    """Goal: operations are keyed as their topic file says. Method: one of each kind."""
    assert key_of(ly.KeyRotated(key_id="k1"), source="cli") == "k1"
    assert key_of(ly.KeyRevoked(key_id="k2"), source="cli") == "k2"
    assert key_of(ly.LogCheckpoint(), source="oona") == "log"
    assert key_of(ly.LogRestored(), source="projection") == "log"
    assert key_of(ly.ProducerStarted(predecessor_id="tolaria:1"), source="tolaria") == "tolaria:1"


@pytest.mark.parametrize("type_name", sorted(set(EVENT_TYPES) - {ly.TelemetryPacket.DESCRIPTOR.full_name}))
def test_every_call_appends_its_event_under_its_key(secluded: Fabric, type_name: str) -> None:
    """Goal: each call works on the real broker. Method: publish by it, read the record back, compare key and type."""
    cls, spec = EVENT_TYPES[type_name], secluded.topics.topic_of(type_name)
    key = f"test-{new_event_id()}"
    message: Any = filled(cls, spec, key)
    for name, value in {"key_id": key, "predecessor_id": key, "topic": "runs", "offset": 2**40}.items():
        if name in cls.DESCRIPTOR.fields_by_name:
            setattr(message, name, value)
    with secluded.publisher(spec.writers[0]) as publisher:
        call: Callable[..., Receipt] = getattr(OonaClient(publisher), calls()[cls])
        receipt = call(message, causation_id="c" * 32)
    with secluded.reader({(receipt.topic, receipt.partition): receipt.offset}) as reader:
        event = next(event for event in reader.read_to_end() if event.meta.event_id == receipt.event_id)
    assert event.topic == spec.name
    assert event.meta.type == type_name
    assert event.meta.causation_id == "c" * 32
    assert event.meta.subject == key_of(message, source=publisher.source)


def test_telemetry_is_not_waited_for_and_stays_under_its_source(fabric: Fabric) -> None:
    """Goal: telemetry costs its caller nothing and is never another's. Method: submit, and try to pose."""
    with fabric.publisher("nissa") as publisher:
        client = OonaClient(publisher)
        pending = client.publish_telemetry(ly.TelemetryPacket(source_subsystem="nissa"))
        assert isinstance(pending, Pending)
        assert pending.result().topic == "telemetry"
        with pytest.raises(UsageError, match="telemetry of tolaria cannot be published by nissa"):
            client.publish_telemetry(ly.TelemetryPacket(source_subsystem="tolaria"))


def test_a_client_of_its_own_is_closed_with_the_fabric(fabric: Fabric) -> None:
    """Goal: no call under a wrong name. Method: open as a source that may not write the topic, and publish."""
    client = OonaClient.open(fabric, "karn")
    with pytest.raises(UsageError, match="karn may not write FieldReport"):
        client.publish_field_report(ly.FieldReport(training_run_id="run-1"))
