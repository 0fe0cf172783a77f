"""Which offsets a point of the log is, found in the projection files alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import duckdb

from esper.core.errors import UsageError
from esper.oona import Position
from esper.projection.definitions._definition import Definition
from esper.projection.files._contents import read_progress
from esper.projection.points._asof import AtEvent, AtOffsets, AtTime, Now, Point, offsets_text, parse_offsets
from esper.projection.records._ledger import Progress
from esper.projection.sql._database import Database, quoted

#: The engine's own tables, of all projections together, are named with this schema.
ENGINE_SCHEMA: Final = "esper"


@dataclass(frozen=True)
class Resolved:
    """A point as offsets, and what the files cannot vouch for.

    `open` names partitions of which nothing later than the asked time is folded, so that the log may hold more
    that counts; `behind` the projections that are not folded up to the offsets.
    """

    offsets: str
    open: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` takes them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Return what `as_dict` was made of."""
        return cls(document["offsets"], tuple(document["open"]), tuple(document["behind"]))


def positions_of(offsets: str) -> dict[Position, int]:
    """Return resolved offsets by topic and partition; a query that reads no projection depends on none."""
    return parse_offsets(offsets) if offsets else {}


@dataclass(frozen=True)
class _Horizon:
    """What one projection knows: its progress, and the first offset of each partition that is later than a time."""

    name: str
    progress: Mapping[Position, Progress]
    later: Mapping[Position, int]


def in_scope(definitions: Iterable[Definition], tables: AbstractSet[tuple[str, ...]]) -> tuple[Definition, ...]:
    """Return the projections that names of tables and views belong to; all, where the engine's tables are asked."""
    names = {parts[-1] for parts in tables}
    everything = any(parts[:-1] == (ENGINE_SCHEMA,) for parts in tables)
    return tuple(one for one in definitions if everything or names & set(one.relations))


def resolve(database: Database, scope: Sequence[Definition], point: Point) -> Resolved:
    """Return which offsets `point` is for the projections in `scope`, all seen in one snapshot.

    Raises:
        UsageError: no event has that id, a partition is missing from the offsets, or the log no longer held what
            stood before the point when a projection began to read it.
        duckdb.Error: a file cannot be read.
    """
    cursor = database.cursor()
    try:
        cursor.execute("begin transaction read only")
        return resolve_in(cursor, scope, point)
    finally:
        cursor.close()


def resolve_in(cursor: duckdb.DuckDBPyConnection, scope: Sequence[Definition], point: Point) -> Resolved:
    """Resolve in the snapshot of the cursor's transaction; its default database changes."""
    match point:
        case AtTime():
            return _at_time([_horizon(cursor, one, point.microseconds) for one in scope], {})
        case AtEvent(event_id):
            place, offset, time = _find_event(cursor, scope, event_id)
            return _at_time([_horizon(cursor, one, time) for one in scope], {place: offset + 1})
        case AtOffsets(offsets):
            return _given([_horizon(cursor, one, None) for one in scope], offsets)
        case Now():
            return _folded([_horizon(cursor, one, None) for one in scope])


def _horizon(cursor: duckdb.DuckDBPyConnection, definition: Definition, later_than: int | None) -> _Horizon:
    cursor.execute(f"use {quoted(definition.name)}")
    progress = {one.place: one for one in read_progress(cursor)}
    later: dict[Position, int] = {}
    if later_than is not None:
        rows = cursor.execute(
            "select topic, topic_partition, min(record_offset) from esper.records"
            " where append_time > make_timestamptz($1::bigint) group by all",
            [later_than],
        ).fetchall()
        later = {(topic, partition): offset for topic, partition, offset in rows}
    return _Horizon(definition.name, progress, later)


def _find_event(
    cursor: duckdb.DuckDBPyConnection, scope: Sequence[Definition], event_id: str
) -> tuple[Position, int, int]:
    """Return place, offset and append time of an event; of several records under its id the first one counts."""
    found: set[tuple[str, int, int, int]] = set()
    for one in scope:
        cursor.execute(f"use {quoted(one.name)}")
        rows = cursor.execute(
            "select topic, topic_partition, record_offset, epoch_us(append_time) from esper.records"
            " where event_id = $1 and disposition in ('applied', 'filtered')",
            [event_id],
        ).fetchall()
        found |= {(topic, partition, offset, time) for topic, partition, offset, time in rows}
    places = {(topic, partition) for topic, partition, _, _ in found}
    if not found:
        names = ", ".join(one.name for one in scope)
        raise UsageError(
            f"no event {event_id!r} is folded",
            cause=f"the projections that the query reads ({names or 'none'}) hold no record of that id",
            next_step="`esper events find` looks for it in the log; a time or offsets name a point as well",
        )
    if len(places) > 1:
        texts = ", ".join(sorted(f"{topic}:{partition}={offset + 1}" for topic, partition, offset, _ in found))
        raise UsageError(
            f"the event id {event_id!r} is ambiguous",
            cause=f"records of that id stand right before {texts}",
            next_step="Give the time or the offsets that you mean",
        )
    topic, partition, offset, time = min(found, key=lambda row: row[2])
    return (topic, partition), offset, time


def _at_time(horizons: Sequence[_Horizon], own: Mapping[Position, int]) -> Resolved:
    folded = _folded_furthest(horizons)
    later: dict[Position, int] = {}
    for one in horizons:
        for place, offset in one.later.items():
            later[place] = min(offset, later.get(place, offset))
    offsets = {**folded, **later, **own}
    for one in horizons:
        for place, progress in one.progress.items():
            if later.get(place, progress.first_offset + 1) <= progress.first_offset and progress.first_offset > 0:
                raise _too_early(one.name, progress)
    unsure = sorted(place for place in folded if place not in later and place not in own)
    return Resolved(offsets_text(offsets), tuple(map(_place_text, unsure)), _behind(horizons, offsets))


def _given(horizons: Sequence[_Horizon], given: Mapping[Position, int]) -> Resolved:
    folded = _folded_furthest(horizons)
    missing = sorted(place for place in folded if place not in given)
    if missing:
        strange = sorted(place for place in given if place not in folded)
        beside = f"; it does not depend on {_spans_text(strange)}" if strange else ""
        raise UsageError(
            "the offsets do not say enough for this query",
            cause=f"it depends also on {_spans_text(missing)}{beside}",
            next_step="Give an offset for each, or the time or event that the offsets were made of",
        )
    for one in horizons:
        for place, progress in one.progress.items():
            if given[place] < progress.first_offset:
                raise _too_early(one.name, progress)
    offsets = {place: given[place] for place in folded}
    return Resolved(offsets_text(offsets), (), _behind(horizons, offsets))


def _spans_text(places: Sequence[Position]) -> str:
    """Return partitions in short, neighbours as a range: runs:0-7, system-state:3."""
    spans: list[tuple[str, int, int]] = []
    for topic, partition in places:
        if spans and spans[-1][0] == topic and spans[-1][2] == partition - 1:
            spans[-1] = (topic, spans[-1][1], partition)
        else:
            spans.append((topic, partition, partition))
    return ", ".join(f"{topic}:{first}" if first == last else f"{topic}:{first}-{last}" for topic, first, last in spans)


def _folded(horizons: Sequence[_Horizon]) -> Resolved:
    offsets: dict[Position, int] = {}
    for one in horizons:
        for place, progress in one.progress.items():
            offsets[place] = min(progress.next_offset, offsets.get(place, progress.next_offset))
    return Resolved(offsets_text(offsets))


def _folded_furthest(horizons: Sequence[_Horizon]) -> dict[Position, int]:
    offsets: dict[Position, int] = {}
    for one in horizons:
        for place, progress in one.progress.items():
            offsets[place] = max(progress.next_offset, offsets.get(place, 0))
    return offsets


def _behind(horizons: Sequence[_Horizon], offsets: Mapping[Position, int]) -> tuple[str, ...]:
    return tuple(
        f"{one.name} has {_place_text(place)} below {progress.next_offset}, not {offsets[place]}"
        for one in horizons
        for place, progress in sorted(one.progress.items())
        if progress.next_offset < offsets[place]
    )


def _too_early(name: str, progress: Progress) -> UsageError:
    return UsageError(
        f"projection {name} does not reach back to that point",
        cause=f"{_place_text(progress.place)} began at offset {progress.first_offset} when it was built: the log no"
        " longer held what stands before",
        next_step="Ask for a later point, or build it again from a log that has all",
    )


def _place_text(place: Position) -> str:
    return f"{place[0]}:{place[1]}"
