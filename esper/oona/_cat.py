"""The events of a topic as plain data, for people and their tools."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypedDict

from google.protobuf.json_format import MessageToDict

from esper.oona._cluster import Position
from esper.oona._events import Event

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric


class EventObject(TypedDict):
    """One event; `payload` is protobuf's JSON form with the contract's field names, without the meta."""

    topic: str
    partition: int
    offset: int
    key: str
    type: str
    event_id: str
    causation_id: str
    time: str
    payload: dict[str, Any]


def cat_events(
    fabric: Fabric, topic: str, *, key: str | None = None, limit: int | None = None
) -> Iterator[EventObject]:
    """Yield the authentic events that `topic` holds at the time of the call, partition by partition, by offset.

    Only those with record key `key` where one is given, and at most `limit`. Records that must not be believed
    are passed over; `esper dlq list` names them.

    Raises:
        UsageError: there is no such topic.
        BrokerUnavailable: no broker answered within `settings.broker_retry_seconds`.
    """
    places = fabric.topics.partitions(topic)
    if key is not None:
        places = [(topic, fabric.partition_of(topic, key))]
    left = limit
    for place in places:
        for event in _partition_events(fabric, place):
            if left == 0:
                return
            if key is None or event.meta.subject == key:
                left = None if left is None else left - 1
                yield event_object(event)


def event_object(event: Event) -> EventObject:
    """Return an event as plain data."""
    payload = MessageToDict(event.message, preserving_proto_field_name=True)
    payload.pop("meta", None)
    meta = event.meta
    return EventObject(
        topic=event.topic,
        partition=event.partition,
        offset=event.offset,
        key=meta.subject,
        type=meta.type,
        event_id=meta.event_id,
        causation_id=meta.causation_id,
        time=meta.time.ToJsonString(),
        payload=payload,
    )


def _partition_events(fabric: Fabric, place: Position) -> Iterator[Event]:
    """Yield the events of one partition up to the end that it has now."""
    _, end = fabric.cluster.watermarks([place])[place]
    with fabric.reader({place: "begin"}) as reader:
        while reader.positions()[place] < end:
            for event in reader.read(1.0):
                if event.offset >= end:
                    return
                yield event
