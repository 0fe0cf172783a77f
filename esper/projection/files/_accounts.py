"""Whether a commit accounts for every offset that it passes, asked inside its transaction; and the same in SQL.

Kafka gives each record an offset of its partition, and gives offsets to records alone but for the markers that end
transactions, which no reader is given. So between two offsets of a ledger that do not follow each other there must be
nothing that the log holds as a record: that is asked of the log itself before the offsets are committed, by a reader
that shares nothing with the one that folds. What is answered stays in `esper.gaps`. Deleted records leave no gap: they
lie before the first offset, and a reader that needs them stops (`_continuity`); topics of events are never compacted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import duckdb

from esper.core.clock import Deadline
from esper.core.errors import IntegrityError, NotReadyError
from esper.oona import Fabric, Position
from esper.projection._past import log_source
from esper.projection.files._contents import read_progress
from esper.projection.records._ledger import Disposition, Progress

#: Returns the offsets from the second argument on and before the third at which the log holds a record.
Holds = Callable[[Position, int, int], Sequence[int]]

#: What a user can ask of any projection: `select * from runs.esper.accounts`.
ACCOUNTS_SCHEMA: Final = (
    "create table esper.gaps (topic varchar, topic_partition integer, first_offset bigint, next_offset bigint)",
    """create view esper.accounts as
    select p.topic, p.topic_partition, p.first_offset, p.next_offset, p.read, p.applied, p.filtered, p.deduplicated,
      p.discarded, coalesce(g.offsets, 0) as without_record, coalesce(l.lines, 0) as lines,
      p.read = p.applied + p.filtered + p.deduplicated + p.discarded and p.read = coalesce(l.lines, 0)
        and p.applied = coalesce(l.applied, 0) and p.filtered = coalesce(l.filtered, 0)
        and p.deduplicated = coalesce(l.deduplicated, 0) and p.discarded = coalesce(l.discarded, 0)
        and p.next_offset - p.first_offset = p.read + coalesce(g.offsets, 0) as adds_up
    from esper.progress p
    left join (
      select topic, topic_partition, count(distinct record_offset) as lines,
        count(*) filter (disposition = 'applied') as applied, count(*) filter (disposition = 'filtered') as filtered,
        count(*) filter (disposition = 'deduplicated') as deduplicated,
        count(*) filter (disposition = 'discarded') as discarded
      from esper.records group by all
    ) l using (topic, topic_partition)
    left join (
      select topic, topic_partition, sum(next_offset - first_offset) as offsets from esper.gaps group by all
    ) g using (topic, topic_partition)""",
)
#: DuckDB numbers the rows that a transaction has appended and not committed from 36028797018960000 on.
_UNCOMMITTED: Final = 2**54
_PROBE_SECONDS: Final = 60.0
_PROBE_RECORDS: Final = 500
_NAMED_MAX: Final = 5


@dataclass
class _Lines:
    """The ledger's new lines of one partition."""

    counts: dict[str, int] = field(default_factory=dict)
    first: int = 2**63
    last: int = -1
    #: Different offsets.
    distinct: int = 0

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    def contiguous_from(self, offset: int) -> bool:
        """Return whether they are exactly the offsets from `offset` to the last one, each once."""
        return self.first == offset and self.distinct == self.count == self.last - self.first + 1


def check_accounts(
    cursor: duckdb.DuckDBPyConnection, name: str, before: Mapping[Position, Progress], holds: Holds
) -> None:
    """Return if the transaction of `cursor` accounts for every record of the log that it passes.

    Its new lines in the ledger and its new offsets and counts are compared with each other and with those `before`;
    gaps between offsets are asked of the log, and kept when it holds nothing there.

    Raises:
        IntegrityError: a record was skipped, or the counts do not add up.
        BrokerUnavailable: the log could not be asked.
    """
    lines = _new_lines(cursor)
    after = {one.place: one for one in read_progress(cursor)}
    for place in sorted(lines.keys() | {place for place, one in after.items() if one != before.get(place)}):
        found = lines.get(place, _Lines())
        old, new = before.get(place), after.get(place)
        if old is None or new != _after(old, found):
            raise IntegrityError(
                f"the counts of projection {name} do not add up in partition {place[1]} of topic {place[0]}",
                cause=f"from {old} it went to {new} with the lines {found.counts} up to offset {found.last}",
                next_step="Nothing was committed; start it again, and report this if it comes again",
            )
        if not found.contiguous_from(old.next_offset):
            _check_gaps(cursor, name, old, holds)


def _new_lines(cursor: duckdb.DuckDBPyConnection) -> Mapping[Position, _Lines]:
    rows = cursor.execute(
        "select topic, topic_partition, disposition, count(*), min(record_offset), max(record_offset),"
        " count(distinct record_offset) from esper.records where rowid >= $1"
        " group by grouping sets ((topic, topic_partition, disposition), (topic, topic_partition))",
        [_UNCOMMITTED],
    ).fetchall()
    lines: dict[Position, _Lines] = defaultdict(_Lines)
    for topic, partition, disposition, count, first, last, distinct in rows:
        one = lines[(topic, partition)]
        if disposition is None:
            one.first, one.last, one.distinct = first, last, distinct
        else:
            one.counts[disposition] = count
    return lines


def _after(old: Progress, lines: _Lines) -> Progress:
    def added(disposition: Disposition) -> int:
        return lines.counts.get(disposition, 0)

    return replace(
        old,
        next_offset=max(old.next_offset, lines.last + 1),
        read=old.read + lines.count,
        applied=old.applied + added(Disposition.APPLIED),
        filtered=old.filtered + added(Disposition.FILTERED),
        deduplicated=old.deduplicated + added(Disposition.DEDUPLICATED),
        discarded=old.discarded + added(Disposition.DISCARDED),
    )


def _check_gaps(cursor: duckdb.DuckDBPyConnection, name: str, old: Progress, holds: Holds) -> None:
    """Ask the log about every gap in the new lines of one partition, and keep those at which it holds nothing."""
    rows = cursor.execute(
        "select before, after from (select record_offset as after,"
        " lag(record_offset, 1, $4) over (order by record_offset) as before from esper.records"
        " where rowid >= $1 and topic = $2 and topic_partition = $3) where after <> before + 1 order by all",
        [_UNCOMMITTED, *old.place, old.next_offset - 1],
    ).fetchall()
    for before, after in rows:
        if after == before:
            raise _skipped(name, old.place, [], f"offset {after} would have two lines")
        skipped = holds(old.place, before + 1, after)
        if skipped:
            raise _skipped(name, old.place, skipped, "the log holds them")
        cursor.execute("insert into esper.gaps values ($1, $2, $3, $4)", [*old.place, before + 1, after])


def _skipped(name: str, place: Position, offsets: Sequence[int], cause: str) -> IntegrityError:
    topic, partition = place
    named = ", ".join(map(str, offsets[:_NAMED_MAX])) + (", ..." if len(offsets) > _NAMED_MAX else "")
    return IntegrityError(
        f"projection {name} would pass over {len(offsets)} records of partition {partition} of topic {topic}",
        cause=f"offsets {named}: {cause}, and its ledger would not" if offsets else cause,
        next_step="Nothing was committed; start it again, and report this if it comes again",
    )


def log_holds(fabric: Fabric) -> Holds:
    """Return what asks the cluster's log and what is sealed of it, with a source of its own for each question."""

    def holds(place: Position, start: int, end: int) -> list[int]:
        found: list[int] = []
        deadline = Deadline(_PROBE_SECONDS)
        source = log_source(fabric, [place[0]])
        try:
            source.seek({place: start})
            while source.positions().get(place, start) < end:  # ends with a record behind the gap, or at the deadline
                found += [offset for offset in source.read(1.0, _PROBE_RECORDS).offset if offset < end]
                if deadline.expired:
                    raise NotReadyError(
                        f"offsets {start} to {end - 1} of partition {place[1]} of topic {place[0]} cannot be read",
                        cause=f"the log gave no answer for {_PROBE_SECONDS:g} seconds",
                        next_step="Try again",
                    )
        finally:
            source.close()
        return found

    return holds
