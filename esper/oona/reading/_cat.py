"""The events of a topic as plain data, for people and their tools: what it holds, and what comes."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypedDict

from google.protobuf.json_format import MessageToDict

from esper.core.clock import SYSTEM_CLOCK
from esper.leyline import Record
from esper.oona._cluster import Position
from esper.oona._events import Event
from esper.oona.reading._range import AtTime, Point, offsets_at, scan
from esper.oona.reading._reader import Only
from esper.oona.reading._where import Where

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric

_WAIT_SECONDS: Final = 0.5


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


@dataclass(frozen=True)
class Selection:
    """Which events of a topic are asked for: all that meet everything given.

    `begin` is included, `end` is not; both are points as `parse_point` gives them. `where` holds conditions
    `FIELD=VALUE` on the message (see `Where.compile`).
    """

    key: str | None = None
    begin: Point | None = None
    end: Point | None = None
    where: Sequence[str] = ()


def cat_events(
    fabric: Fabric,
    topic: str,
    *,
    key: str | None = None,
    limit: int | None = None,
    begin: Point | None = None,
    end: Point | None = None,
    where: Sequence[str] = (),
) -> Iterator[EventObject]:
    """Yield the authentic events that `topic` holds at the time of the call, partition by partition, by offset.

    Only those with record key `key` where one is given, from `begin` to before `end`, which meet every condition
    of `where`, and at most `limit`. Records that must not be believed are passed over; `esper dlq list` names them.

    Raises:
        UsageError: there is no such topic, event or field.
        BrokerUnavailable: no broker answered within `settings.broker_retry_seconds`.
    """
    meets = Where.compile(where, fabric.topics[topic].types)
    places = places_of(fabric, topic, key)
    begins = offsets_at(fabric, begin or "begin", places)
    ends = offsets_at(fabric, end or "end", places)
    left = limit
    for place in places:
        for event in scan(fabric, {place: begins[place]}, {place: ends[place]}, only=of_key(key)):
            if left == 0:
                return
            if meets(event.message):
                left = None if left is None else left - 1
                yield event_object(event)


def tail_events(fabric: Fabric, topic: str, selection: Selection) -> Generator[EventObject, None, None]:
    """Yield the authentic events of `topic` as they come, from `selection.begin` (the end, unless given) on.

    Ends only where `selection.end` is given: when every partition was read up to there. A time that is yet to
    come is waited for. Closing the generator releases its connections.

    Raises:
        UsageError: there is no such topic, event or field.
        BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
    """
    meets = Where.compile(selection.where, fabric.topics[topic].types)
    places = places_of(fabric, topic, selection.key)
    begins = offsets_at(fabric, selection.begin or "end", places)
    held = fabric.cluster.watermarks(places)
    ends = _ends(fabric, selection.end, places)
    with fabric.reader({place: min(max(begins[place], low), high) for place, (low, high) in held.items()}) as reader:
        while ends is None or any(reader.positions()[place] < end for place, end in ends.items()):
            for event in reader.read(_WAIT_SECONDS, only=of_key(selection.key)):
                place = (event.topic, event.partition)
                inside = begins[place] <= event.offset and (ends is None or event.offset < ends[place])
                if inside and meets(event.message):
                    yield event_object(event)
            ends = _ends(fabric, selection.end, places) if ends is None else ends


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


def places_of(fabric: Fabric, topic: str, key: str | None) -> list[Position]:
    """Return the partitions of a topic that can hold `key`; all for None."""
    places = fabric.topics.partitions(topic)
    return places if key is None else [(topic, fabric.partition_of(topic, key))]


def of_key(key: str | None) -> Only | None:
    """Return a test for records of a key, which costs no verification; None for None."""
    if key is None:
        return None
    wanted = key.encode()

    def has_key(record: Record) -> bool:
        return record.key == wanted

    return has_key


def _ends(fabric: Fabric, point: Point | None, places: Sequence[Position]) -> dict[Position, int] | None:
    """Return where a tail stops; None while it does not, or its time is yet to come."""
    if point is None:
        return None
    if isinstance(point, AtTime) and point.time_ms > SYSTEM_CLOCK.now_ns() // 1_000_000:
        return None
    return offsets_at(fabric, point, places)
