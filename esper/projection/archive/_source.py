"""Archive and live log read as one: what is sealed from the segments, and from where they end the live log."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from esper.leyline import RecordColumns
from esper.oona import Position
from esper.projection.archive._segments import Segment, read_segment_columns
from esper.projection.archive._survey import Survey
from esper.projection.records._source import LogState, PartitionState, RecordSource


class SpanningSource:
    """A `RecordSource` over segments and a live source; every offset comes once, in order within its partition.

    A partition is read from its segments where the live log no longer holds the wanted offset, or, with `cold`, as
    far as segments reach. Segments of a topic that the live one does not go on from are not there for it. Each
    segment's file is compared with its signed digest before its first record is given out.
    """

    def __init__(self, live: RecordSource, found: Survey, *, cold: bool = False) -> None:
        """Read `found`, which must have been checked, before `live`."""
        self._live = live
        self._found = found
        self._cold = cold
        self._sealed: dict[Position, Iterator[RecordColumns]] = {}
        self._next: dict[Position, int] = {}
        self._live_begun = False

    def topic_ids(self) -> Mapping[str, str]:
        """Return the ids of the live topics."""
        return self._live.topic_ids()

    def state(self) -> LogState:
        """Return the live log's state, each partition beginning where its segments do, if those reach it."""
        return {place: self._extended(place, found) for place, found in self._live.state().items()}

    def seek(self, positions: Mapping[Position, int]) -> None:
        """Read on from these offsets, and from these partitions only."""
        live = self._live.state()
        self._close_segments()
        self._next = dict(positions)
        self._live_begun = False
        for place, offset in positions.items():
            segments = self._segments(place, live.get(place))
            if segments and offset < segments[-1].manifest.next_offset:
                held = live[place].low <= offset
                if self._cold or not held:
                    end = segments[-1].manifest.next_offset if self._cold else live[place].low
                    self._sealed[place] = _read(segments, offset, end)
        if not self._sealed:
            self._begin_live()

    def read(self, timeout: float, limit: int) -> RecordColumns:
        """Return the next records: of segments as long as there are some, then of the live log.

        Raises:
            IntegrityError: a segment is not what was sealed, or the live log does not hold the wanted position.
            BrokerUnavailable: no broker answered.
        """
        while self._sealed:  # ends with the segments
            place, blocks = next(iter(self._sealed.items()))
            del self._sealed[place]
            block = next(blocks, None)
            if block is None:
                self._next[place] = self._end_of_segments(place, self._next[place])
                continue
            taken = block[:limit]
            # To the end of the row: the others come first.
            self._sealed[place] = chain([block[limit:]], blocks) if len(block) > limit else blocks
            self._next[place] = taken.offset[-1] + 1
            return taken
        if not self._live_begun:
            self._begin_live()
        return self._live.read(timeout, limit)

    def positions(self) -> Mapping[Position, int]:
        """Return the offset of the next record of each partition."""
        return self._live.positions() if self._live_begun else dict(self._next)

    def close(self) -> None:
        """Release segments and live log."""
        self._close_segments()
        self._live.close()

    def _begin_live(self) -> None:
        self._live.seek(self._next)
        self._live_begun = True

    def _close_segments(self) -> None:
        self._sealed.clear()

    def _extended(self, place: Position, live: PartitionState) -> PartitionState:
        segments = self._segments(place, live)
        if not segments:
            return live
        return PartitionState(live.topic_id, min(live.low, segments[0].manifest.first_offset), live.high)

    def _segments(self, place: Position, live: PartitionState | None) -> list[Segment]:
        """Return the segments that lead up to, or into, what is live of a partition."""
        segments = self._found.segments.get(place, [])
        if live is None or not segments:
            return []
        last = segments[-1].manifest
        if not self._found.leads(place, last.topic_id, live.topic_id):
            return []
        return segments if live.low <= last.next_offset <= live.high else []

    def _end_of_segments(self, place: Position, offset: int) -> int:
        """Return where the live log takes over; the last offsets of a segment may hold no record."""
        end = self._found.segments[place][-1].manifest.next_offset
        return max(offset, end if self._cold else min(end, self._live.state()[place].low))


def _read(segments: Sequence[Segment], start: int, end: int) -> Iterator[RecordColumns]:
    for segment in segments:
        if segment.manifest.next_offset > start and segment.manifest.first_offset < end:
            for block in read_segment_columns(segment, start):
                before = block[: bisect_left(block.offset, end)]
                if len(before):
                    yield before
                if len(before) < len(block):
                    return
