"""Looking for events in the whole log, by id, key, type, time and fields."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from esper.core.errors import UsageError
from esper.leyline import EVENT_TYPES, TYPE_HEADER, Record, full_name, short_name
from esper.oona._cluster import Position
from esper.oona._events import Event
from esper.oona.reading._cat import EventObject, Selection, event_object, of_key, places_of
from esper.oona.reading._range import mentions, offsets_at, scan
from esper.oona.reading._reader import Only
from esper.oona.reading._where import Where

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric

#: Events that one search holds in memory; beyond, it asks for a limit.
FOUND_MAX: Final = 100_000


def find_events(
    fabric: Fabric,
    selection: Selection,
    *,
    event_id: str | None = None,
    types: Sequence[str] = (),
    topics: Sequence[str] = (),
    limit: int | None = None,
) -> list[EventObject]:
    """Return the authentic events of all topics (or `topics`) that meet everything given, by append time.

    `types` are names of the contract, short or full. At most `limit` are returned, the earliest. Every record is
    looked at, and only those are verified whose bytes can match: a search costs as much as reading the log.

    Raises:
        UsageError: nothing is asked for; there is no such topic, type, event or field; or more than 100,000 events
            match and no limit is given.
        BrokerUnavailable: no broker answered.
    """
    if not (event_id or types or topics or selection.key or selection.where or selection.begin or selection.end):
        raise UsageError(
            "nothing to look for", cause="no condition is given", next_step="Give an event id, --key, --type or --where"
        )
    wanted = _wanted_types(fabric, types, topics)
    meets = Where.compile(selection.where, wanted)
    wanted &= meets.types
    places = _places(fabric, wanted, topics, selection.key)
    only = _all_of([of_key(selection.key), None if event_id is None else mentions(event_id), _of_types(wanted)])
    begins = offsets_at(fabric, selection.begin or "begin", places)
    ends = offsets_at(fabric, selection.end or "end", places)
    found = (
        event
        for event in scan(fabric, begins, ends, only=only)
        if (event_id is None or event.meta.event_id == event_id) and meets(event.message)
    )
    return [event_object(event) for event in _earliest(found, limit)]


def by_append_time(event: Event) -> tuple[int, str, int, int]:
    """Return what events of several partitions are ordered by."""
    return (event.record.append_time_ms, event.topic, event.partition, event.offset)


def _earliest(found: Iterable[Event], limit: int | None) -> list[Event]:
    count = FOUND_MAX + 1 if limit is None else limit
    earliest = heapq.nsmallest(count, found, key=by_append_time)
    if len(earliest) > FOUND_MAX:
        raise UsageError(
            "too much was found",
            cause=f"more than {FOUND_MAX} events match",
            next_step="Give --limit, or ask for less with --from, --to, --key or --where",
        )
    return earliest


def _wanted_types(fabric: Fabric, types: Sequence[str], topics: Sequence[str]) -> set[str]:
    for name in types:
        if full_name(name) not in EVENT_TYPES:
            raise UsageError(
                f"there is no event type {name!r}",
                cause=f"the contract has {', '.join(sorted(map(short_name, EVENT_TYPES)))}",
            )
    wanted = {full_name(name) for name in types} or set(EVENT_TYPES)
    carried = {name for topic in topics for name in fabric.topics[topic].types} or wanted
    if not wanted & carried:
        raise UsageError(f"{', '.join(topics)} carry no {', '.join(types)}", cause="each type has one topic")
    return wanted & carried


def _places(fabric: Fabric, wanted: set[str], topics: Sequence[str], key: str | None) -> list[Position]:
    names = topics or sorted({fabric.topics.topic_of(name).name for name in wanted})
    return [place for topic in dict.fromkeys(names) for place in places_of(fabric, topic, key)]


def _of_types(wanted: set[str]) -> Only | None:
    if wanted == set(EVENT_TYPES):
        return None
    names = {name.encode() for name in wanted}

    def has_type(record: Record) -> bool:
        return record.header(TYPE_HEADER) in names

    return has_type


def _all_of(tests: Sequence[Only | None]) -> Only | None:
    given = [test for test in tests if test is not None]
    if not given:
        return None
    return lambda record: all(test(record) for test in given)
