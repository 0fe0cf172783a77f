"""Events between two offset vectors as Arrow tables, for those who learn from the log rather than query it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from esper.core.errors import NotReadyError
from esper.oona import Fabric, Position
from esper.projection._past import log_source
from esper.projection.columnar import ArrowDecoder, Batch
from esper.projection.intake._admission import Admission
from esper.projection.intake._intake import LocalIntake
from esper.projection.intake._parallel import ParallelIntake

if TYPE_CHECKING:
    from esper.projection.intake._intake import Intake

_POLL_SECONDS: Final = 1.0
#: Rows that are decoded together; an observation with its names has a few kilobytes.
_RECORDS: Final = 20_000


def event_tables(
    fabric: Fabric,
    wanted: Collection[str],
    begins: Mapping[Position, int],
    ends: Mapping[Position, int],
    *,
    processes: int = 1,
) -> Iterator[tuple[str, pa.Table]]:
    """Yield the authentic events of the types `wanted` (full names), table by table, with the name of their type.

    A table has the columns of `PLACE_SCHEMA` before the message's own canonical ones. Within a partition rows come in
    the order of the log; what must not be believed is left out, duplicates are not. What an archive holds of the past
    is read from there.

    Args:
        fabric: Whose log.
        wanted: Types; others between the offsets are passed over.
        begins: First offset of each partition; a lower one than the log holds begins where it begins.
        ends: The offset after the last of each partition.
        processes: How many read and decode; more than one start interpreters of their own, which takes seconds.

    Raises:
        NotReadyError: a partition ends before its end: the log does not hold yet, or no longer, what is asked for.
        BrokerUnavailable: no broker answered.
    """
    topics = sorted({topic for topic, _ in begins})
    intake = _intake(fabric, topics, wanted, processes)
    try:
        state = intake.state()
        short = sorted(place for place, end in ends.items() if end > state[place].high)
        if short:
            topic, partition = short[0]
            raise NotReadyError(
                f"the log ends before offset {ends[short[0]]} of {topic}-{partition}",
                cause=f"its last offset is {state[short[0]].high - 1}",
                next_step="Name offsets that this log holds",
            )
        left = {place: begin for place, begin in begins.items() if max(begin, state[place].low) < ends[place]}
        if left:
            intake.seek(left)
            yield from _until(intake, {place: ends[place] for place in left})
    finally:
        intake.close()


def _intake(fabric: Fabric, topics: list[str], wanted: Collection[str], processes: int) -> Intake:
    if processes > 1:
        return ParallelIntake(fabric, topics, wanted=wanted, processes=processes, records_max=_RECORDS)
    admission = Admission(keyring=fabric.keyring, allowed=fabric.topics.allowed, wanted=wanted, decoder=ArrowDecoder())
    return LocalIntake(log_source(fabric, topics), admission, records_max=_RECORDS)


def _until(intake: Intake, ends: Mapping[Position, int]) -> Iterator[tuple[str, pa.Table]]:
    while any(intake.positions()[place] < end for place, end in ends.items()) or intake.pending:
        taken = intake.take(_POLL_SECONDS)
        if taken is not None:
            yield from _before(taken.batch, ends)
        if all(intake.positions()[place] >= end for place, end in ends.items()):
            rest = intake.flush()
            if rest is not None:
                yield from _before(rest.batch, ends)
            if not intake.pending:
                return


def _before(batch: Batch, ends: Mapping[Position, int]) -> Iterator[tuple[str, pa.Table]]:
    """Yield the tables of a batch without what lies behind the ends."""
    limits = np.array([ends[place] for place in batch.places], dtype=np.int64)
    beyond = batch.offset >= limits[batch.place]
    for kind, table in batch.rows.items():
        if not beyond.any():
            yield kind, table
            continue
        code = batch.kinds.index(kind)
        mine = (batch.kind == code) & (batch.row >= 0)
        keep = np.zeros(len(table), dtype=np.bool_)
        keep[batch.row[mine & ~beyond]] = True
        yield kind, table.filter(pa.array(keep))
