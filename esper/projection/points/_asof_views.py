"""The tables and views of projections as they were at offsets of the log.

Facts are append-only and each row names the record that it comes from, so that the past is a filter: a query gets a
database of its own in memory with a view over each table that shows the rows below the offsets, the projection's
views made anew over those, and nothing else that a bare name could mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

import duckdb

from esper.core.errors import NotReadyError, UsageError
from esper.core.ids import new_event_id
from esper.leyline import full_name
from esper.oona import Position, TopicCatalog
from esper.projection.definitions._definition import Definition
from esper.projection.points._asof import AtOffsets
from esper.projection.points._resolve import ENGINE_SCHEMA, in_scope, resolve_in
from esper.projection.sql._database import Database, quoted, text_literal, transaction

_ENGINE_TABLES: Final = ("progress", "records")
_COUNTED: Final = ("applied", "filtered", "deduplicated", "discarded")


class PastState:
    """The state of projections as of offsets, for one query (`_reading.Past`) or one export."""

    def __init__(
        self,
        database: Database,
        definitions: Sequence[Definition],
        catalog: TopicCatalog,
        offsets: Mapping[Position, int],
    ) -> None:
        self._database = database
        self._definitions = tuple(definitions)
        self._catalog = catalog
        self._offsets = offsets
        #: Nobody can guess it: no other query can name what is in there.
        self.alias = f"as-of-{new_event_id()}"
        self._shown = False

    def check(self, tables: AbstractSet[tuple[str, ...]]) -> None:
        """Keep to the projections that these names belong to; raise UsageError for names that lead past the filter."""
        engine = {(ENGINE_SCHEMA, table) for table in _ENGINE_TABLES}
        led = sorted(".".join(parts) for parts in tables if len(parts) > 1 and parts not in engine)
        if led:
            raise UsageError(
                "this query cannot be run as of a point in the past",
                cause=f"{led[0]} names what is there now",
                next_step="Name tables and views alone; esper.progress and esper.records are those of all projections",
            )
        self._definitions = in_scope(self._definitions, tables)

    def show(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Let the cursor's bare names mean the past."""
        cursor.execute(f"attach ':memory:' as {quoted(self.alias)}")
        self._shown = True
        cursor.execute(f"use {quoted(self.alias)}")
        with transaction(cursor):
            for one in self._definitions:
                for statement in self._statements(one):
                    cursor.execute(statement)
            cursor.execute(f"create schema {ENGINE_SCHEMA}")
            for name, select in _engine_tables(self._definitions, self._offsets).items():
                cursor.execute(f"create view {ENGINE_SCHEMA}.{name} as {select}")

    def confirm(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Raise NotReadyError or UsageError where the projections do not hold that state in the cursor's snapshot."""
        resolved = resolve_in(cursor, self._definitions, AtOffsets(self._offsets))
        if resolved.behind:
            raise behind(resolved.behind)
        cursor.execute(f"use {quoted(self.alias)}")

    def hide(self) -> None:
        """Drop what `show` made."""
        if self._shown:
            self._database.detach(self.alias)

    def _statements(self, definition: Definition) -> Iterator[str]:
        for table, topic in table_topics(definition, self._catalog).items():
            source = f"{quoted(definition.name)}.main.{quoted(table)}"
            where = _below({partition: end for (name, partition), end in self._offsets.items() if name == topic})
            yield f"create view {quoted(table)} as from {source} where {where}"
        yield from definition.views


def behind(words: Sequence[str]) -> NotReadyError:
    """Return the error for projections that are not folded up to a point."""
    return NotReadyError(
        "the projections do not reach that point",
        cause="; ".join(words),
        next_step="The log may not hold it; where it does, start the broker: then they are folded up to it first",
    )


def table_topics(definition: Definition, catalog: TopicCatalog) -> dict[str, str]:
    """Return the topic that each fact table is filled from: it takes one message type, which one topic carries."""
    return {fold.table: catalog.topic_of(full_name(fold.message)).name for fold in definition.folds}


def expose_engine(database: Database, names: Iterable[str]) -> None:
    """Let `esper.progress` and `esper.records` mean those of all attached projections, with the column `projection`."""
    cursor = database.cursor()
    try:
        with transaction(cursor):
            cursor.execute(f"create schema if not exists memory.{ENGINE_SCHEMA}")
            for table in _ENGINE_TABLES:
                select = _together({name: f"{quoted(name)}.{ENGINE_SCHEMA}.{table}" for name in names})
                cursor.execute(f"create or replace view memory.{ENGINE_SCHEMA}.{table} as {select}")
    finally:
        cursor.close()


def _together(sources: Mapping[str, str]) -> str:
    """Return the rows of one engine table of several projections as one SELECT."""
    parts = [f"select {text_literal(name)} as projection, * from {source}" for name, source in sources.items()]  # noqa: S608 - our own names
    return " union all by name ".join(parts)


def _engine_tables(scope: Sequence[Definition], offsets: Mapping[Position, int]) -> dict[str, str]:
    """Return the SELECTs that give `progress` and `records` as of the offsets; none where there is no projection."""
    records = {one.name: _records(one, offsets) for one in scope}
    if not records:
        return {}
    progress = {name: _progress(name, source) for name, source in records.items()}
    return {"records": _together(records), "progress": _together(progress)}


def _records(definition: Definition, offsets: Mapping[Position, int]) -> str:
    source = f"{quoted(definition.name)}.{ENGINE_SCHEMA}.records"
    topics = [
        f"(topic = {text_literal(topic)} and {_below({p: end for (name, p), end in offsets.items() if name == topic})})"
        for topic in definition.topics
    ]
    return f"(from {source} where {' or '.join(topics)})"


def _progress(name: str, records: str) -> str:
    """Return the progress that a replay up to the offsets would write."""
    counts = ", ".join(f"count(*) filter (r.disposition = '{count}') as {count}" for count in _COUNTED)
    return (
        "(select p.topic, p.topic_partition, p.topic_id, p.first_offset,"  # noqa: S608 - our own names
        " coalesce(max(r.record_offset) + 1, p.first_offset) as next_offset, count(r.record_offset) as read,"
        f" {counts} from {quoted(name)}.{ENGINE_SCHEMA}.progress p"
        f" left join {records} r using (topic, topic_partition)"
        " group by p.topic, p.topic_partition, p.topic_id, p.first_offset)"
    )


def _below(ends: Mapping[int, int]) -> str:
    """Return the condition for rows of one topic below the offset of their partition.

    The first comparison is one that DuckDB skips whole row groups by.
    """
    if not ends:
        return "false"
    cases = " ".join(f"when {partition} then record_offset < {end}" for partition, end in sorted(ends.items()))
    return f"(record_offset < {max(ends.values())} and case topic_partition {cases} else false end)"
