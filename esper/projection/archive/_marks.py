"""How far an archive holds each partition for certain: what retention must not pass."""

from __future__ import annotations

from pathlib import Path

from esper.oona import Position
from esper.projection.archive._layout import Layout
from esper.projection.archive._segments import Segment, is_intact
from esper.projection.archive._survey import Survey, survey

#: What a file looked like when its bytes were last compared: size, time of change, number on its disk.
_Look = tuple[int, int, int]


class ArchiveMarks:
    """Says of partitions up to which offset every segment is there and is what was sealed.

    The bytes of a segment are hashed once in the life of a process, and again when its file looks different.
    """

    def __init__(self, root: Path, *, public_key: bytes) -> None:
        self._layout = Layout(root)
        self._public_key = public_key
        self._seen: dict[Path, _Look] = {}

    def of(self, topics: frozenset[str]) -> dict[Position, int]:
        """Return the mark of each sealed partition of these topics: the first offset that no sound segment holds.

        A partition whose very first segment is unsound has the mark of its beginning. An archive whose documents
        contradict themselves vouches for nothing.
        """
        found = survey(self._layout, public_key=self._public_key)
        return {
            place: stated.first_offset if found.faults else self._mark(found, place)
            for place, stated in found.partitions.items()
            if place[0] in topics
        }

    def _mark(self, found: Survey, place: Position) -> int:
        mark = found.partitions[place].first_offset
        for segment in found.segments.get(place, []):
            if not self._sound(segment):
                break
            mark = segment.manifest.next_offset
        return mark

    def _sound(self, segment: Segment) -> bool:
        try:
            status = segment.path.stat()
        except FileNotFoundError:
            return False
        look = (status.st_size, status.st_mtime_ns, status.st_ino)
        if self._seen.get(segment.path) == look:
            return True
        if not is_intact(segment):
            return False
        self._seen[segment.path] = look
        return True
