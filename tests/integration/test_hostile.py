"""Records that must not be believed, on every topic of a living system."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from esper.core.ids import new_event_id
from esper.core.settings import load_settings
from esper.leyline import EVENT_TYPES, Envelope, KeyRing, full_name
from esper.leyline.v1.meta_pb2 import AnyEvent, EventMeta
from esper.oona import Fabric, TopicCatalog, TopicSpec
from tests.integration.driver import Esper, eventually

Headers = list[tuple[str, bytes]]
Hostile = tuple[str, bytes | None, Headers]
FOREIGN = KeyRing.from_secrets(b"another system's secret, 32 bytes")
KEY = "hostile"


def headers_of(ring: KeyRing, spec: TopicSpec, partition: int, type_name: str, value: bytes) -> Headers:
    signature = ring.sign(Envelope(spec.name, partition, KEY, type_name, value))
    return [("signature", signature), ("type", type_name.encode())]


def hostile(ring: KeyRing, spec: TopicSpec, partition: int) -> Iterator[Hostile]:
    """Yield (reason, value, headers) of one bad record of each kind for a topic."""
    type_name = full_name(sorted(spec.messages)[0])
    assert type_name in EVENT_TYPES
    source = sorted(spec.writers)[0]
    meta = EventMeta(event_id=new_event_id(), type=type_name, source=source, subject=KEY, producer_id="x:1", sequence=1)
    value = AnyEvent(meta=meta).SerializeToString()
    genuine = headers_of(ring, spec, partition, type_name, value)
    yield "UNSIGNED", value, genuine[1:]
    yield "UNKNOWN_KEY", value, headers_of(FOREIGN, spec, partition, type_name, value)
    signature = genuine[0][1]
    yield "BAD_SIGNATURE", value, [("signature", signature[:-1] + bytes([signature[-1] ^ 1])), genuine[1]]
    yield "BAD_SIGNATURE", value[:-2], genuine
    yield "EMPTY", None, genuine
    yield "EMPTY", b"", genuine
    yield "UNKNOWN_TYPE", value, headers_of(ring, spec, partition, "com.example.Foreign", value)
    meta.source = "sauron"
    value = AnyEvent(meta=meta).SerializeToString()
    yield "NOT_ALLOWED", value, headers_of(ring, spec, partition, type_name, value)


@pytest.mark.campaign
def test_bad_records_on_every_topic_stop_nobody(serving: Esper) -> None:
    """Goal: no bad record is applied or in the way, and each is listed.

    Method: every kind on every topic, then a run, the dead letters, and the projections against the log.
    """
    settings = load_settings(home=serving.home)
    wanted: dict[tuple[str, int, int], str] = {}
    with Fabric.open(settings, member="test") as fabric:
        catalog, ring, bootstrap = TopicCatalog.load(settings), fabric.keyring, fabric.bootstrap

        def note(reason: str) -> object:
            def delivered(error: object, message: object) -> None:
                assert error is None
                place = (message.topic(), message.partition(), message.offset())  # type: ignore[attr-defined]
                wanted[place] = reason

            return delivered

        producer = Producer({"bootstrap.servers": bootstrap, "acks": "all"})
        for spec in catalog:
            partition = fabric.partition_of(spec.name, KEY)
            for reason, value, headers in hostile(ring, spec, partition):
                producer.produce(spec.name, value, KEY, partition, headers=headers, on_delivery=note(reason))
        assert producer.flush(30) == 0
    assert len(wanted) == 8 * len(list(catalog))
    document = serving("train", "--task", "digits", "--policy", "noop", "--epochs", "3", "--json").json
    assert document["status"] == "finished"

    def unlisted() -> dict[tuple[str, int, int], str]:
        rows = serving("dlq", "list", "--json").json
        found = {(row["topic"], row["partition"], row["offset"]): row["reason"] for row in rows}
        return {place: reason for place, reason in wanted.items() if found.get(place) != reason}

    with contextlib.suppress(AssertionError):
        eventually(lambda: not unlisted(), what="every bad record is listed with its reason", seconds=60)
    assert unlisted() == {}
    before = len(serving("dlq", "list", "--json").json)
    assert serving("projections", "verify", "--json", timeout=180).json["equal"] is True
    assert len(serving("dlq", "list", "--json").json) == before
