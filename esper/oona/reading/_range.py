"""Points of the log as people name them, an offset, a time or an event, and where each partition stands there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

from confluent_kafka import TopicPartition

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import UsageError
from esper.oona._cluster import Position, check_offsets
from esper.oona._events import Event
from esper.oona._kafka_admin import OffsetSpec
from esper.oona.reading._reader import Only

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric

_EVENT_ID: Final = re.compile(r"[0-9a-f]{32}")
_AGO: Final = re.compile(r"(\d{1,9})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_REQUEST_SECONDS: Final = 5.0
#: What Kafka answers for a time after a partition's last record.
_NO_SUCH_OFFSET: Final = -1


@dataclass(frozen=True)
class AtOffset:
    """The same offset in every partition."""

    offset: int


@dataclass(frozen=True)
class AtTime:
    """The first record that the broker appended at this time or later, milliseconds since the epoch."""

    time_ms: int


@dataclass(frozen=True)
class AtEvent:
    """An event's own place, and in the other partitions its append time."""

    event_id: str


Point = AtOffset | AtTime | AtEvent | Literal["begin", "end"]


def parse_point(text: str, *, clock: Clock = SYSTEM_CLOCK) -> Point:
    """Return the point that `text` names.

    `begin`, `end`, an offset (`120`), an event id (32 hexadecimal digits), a time in ISO 8601
    (`2026-09-21T10:00:00Z`; without a zone: UTC) or an age (`90s`, `15m`, `2h`, `3d`).

    Raises:
        UsageError: it is none of these.
    """
    if text == "begin":
        return "begin"
    if text == "end":
        return "end"
    if _EVENT_ID.fullmatch(text):
        return AtEvent(text)
    if text.isdecimal() and text.isascii():
        return AtOffset(int(text))
    if ago := _AGO.fullmatch(text):
        return AtTime(clock.now_ns() // 1_000_000 - int(ago[1]) * _SECONDS[ago[2]] * 1000)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"{text!r} names no point of the log",
            cause="it is no offset, no time and no event id",
            next_step="Write an offset, an ISO 8601 time, an age such as 15m, 32 hexadecimal digits, begin or end",
        ) from error
    zoned = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return AtTime(round(zoned.timestamp() * 1000))


def offsets_at(fabric: Fabric, point: Point, places: Sequence[Position]) -> dict[Position, int]:
    """Return the offset of each partition at `point`; what a partition does not hold yet may lie beyond its end.

    Raises:
        UsageError: no authentic event has the id.
        BrokerUnavailable: no broker answered.
    """
    if isinstance(point, AtOffset):
        return dict.fromkeys(places, point.offset)
    if isinstance(point, AtTime):
        return _offsets_at_time(fabric, point.time_ms, places)
    if isinstance(point, AtEvent):
        event = locate(fabric, point.event_id, first=places)
        offsets = _offsets_at_time(fabric, event.record.append_time_ms, places)
        own = (event.topic, event.partition)
        return {place: event.offset if place == own else offset for place, offset in offsets.items()}
    ends = fabric.cluster.watermarks(places)
    return {place: low if point == "begin" else high for place, (low, high) in ends.items()}


def scan(
    fabric: Fabric, begins: Mapping[Position, int], ends: Mapping[Position, int], *, only: Only | None = None
) -> Iterator[Event]:
    """Yield the authentic events from `begins` to before `ends`; within each partition by offset.

    Bounds that the log does not hold are drawn in to what it holds at the time of the call. Records that `only`
    does not want are passed over unverified.
    """
    held = fabric.cluster.watermarks(begins)
    window = {place: (max(begin, held[place][0]), min(ends[place], held[place][1])) for place, begin in begins.items()}
    left = {place: begin for place, (begin, end) in window.items() if begin < end}
    if not left:
        return
    with fabric.reader(left) as reader:
        while any(position < window[place][1] for place, position in reader.positions().items()):
            for event in reader.read(1.0, only=only):
                if event.offset < window[(event.topic, event.partition)][1]:
                    yield event


def whole_log(fabric: Fabric) -> list[Position]:
    """Return every partition of every topic."""
    return [place for spec in fabric.topics for place in fabric.topics.partitions(spec.name)]


def mentions(event_id: str) -> Only:
    """Return a test for records whose bytes hold an event id: the event itself and whatever names it."""
    wanted = event_id.encode()
    return lambda record: record.value is not None and wanted in record.value


def locate(fabric: Fabric, event_id: str, *, first: Sequence[Position] = ()) -> Event:
    """Return the authentic event with this id, looking at the partitions `first` before all others.

    Raises:
        UsageError: there is none.
    """
    for places in (list(first), [place for place in whole_log(fabric) if place not in set(first)]):
        ends = {place: high for place, (_, high) in fabric.cluster.watermarks(places).items()}
        for event in scan(fabric, dict.fromkeys(places, 0), ends, only=mentions(event_id)):
            if event.meta.event_id == event_id:
                return event
    raise no_such_event(event_id)


def no_such_event(event_id: str) -> UsageError:
    """Return the error for an id that no authentic event has."""
    return UsageError(
        f"no event has the id {event_id!r}",
        cause="no authentic record of any topic carries it",
        next_step="`esper events find` searches by key, type and fields; `esper dlq list` names what is not believed",
    )


def _offsets_at_time(fabric: Fabric, time_ms: int, places: Sequence[Position]) -> dict[Position, int]:
    """Return each partition's first offset appended at `time_ms` or later, its end where there is none."""
    cluster = fabric.cluster
    what = f"the offsets of {', '.join(sorted({topic for topic, _ in places}))} cannot be read"

    def ask() -> dict[Position, int]:
        spec = OffsetSpec.for_timestamp(time_ms)
        asked = {TopicPartition(*place): spec for place in places}
        futures = cluster.admin.list_offsets(asked, request_timeout=_REQUEST_SECONDS)
        found = {(place.topic, place.partition): future.result().offset for place, future in futures.items()}
        check_offsets(found, least=_NO_SUCH_OFFSET)
        return found

    found = cluster.watch(what).retrying(what, ask)
    after = [place for place, offset in found.items() if offset == _NO_SUCH_OFFSET]
    return found | {place: high for place, (_, high) in cluster.watermarks(after).items()}
