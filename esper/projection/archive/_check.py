"""Checking what a segment holds against what its manifest says."""

from __future__ import annotations

from collections.abc import Iterable

from esper.oona.copying import RawRecord
from esper.projection.archive._blobs import holds_blob
from esper.projection.archive._layout import Layout
from esper.projection.archive._models import SegmentManifest
from esper.projection.archive._segments import Segment, is_intact, read_raw_segment
from esper.projection.archive._survey import Fault, FaultKind


def check_segment(segment: Segment, layout: Layout) -> list[Fault]:
    """Return what is wrong with a segment's file, its records and its blobs."""
    manifest, name = segment.manifest, layout.name(segment.path)
    if not is_intact(segment):
        detail = f"the bytes of records {manifest.first_offset} to {manifest.next_offset - 1} are not those sealed"
        return [_fault(manifest, name, FaultKind.ALTERED, detail, manifest.first_offset)]
    problem = content_problem(manifest, read_raw_segment(segment))
    faults = [_fault(manifest, name, FaultKind.CONTENT, problem[1], problem[0])] if problem else []
    return faults + [
        _fault(manifest, str(digest), FaultKind.BLOB, f"blob {digest} is missing or altered", manifest.first_offset)
        for digest in manifest.blobs
        if not holds_blob(layout.blobs, digest)
    ]


def content_problem(manifest: SegmentManifest, raws: Iterable[RawRecord]) -> tuple[int, str] | None:
    """Return the first offset at which records are not what the manifest says, and how; pure."""
    position, count = manifest.first_offset, 0
    gaps = dict(manifest.gaps)
    earliest = latest = 0
    for raw in raws:
        position = gaps.get(position, position)
        if raw.record.offset != position:
            return position, f"offset {raw.record.offset} stands where {position} should"
        time = raw.record.append_time_ms
        earliest, latest = (min(earliest, time), max(latest, time)) if count else (time, time)
        position, count = position + 1, count + 1
    position = gaps.get(position, position)
    if position != manifest.next_offset or count != manifest.records:
        return position, f"its {count} records end before offset {position}, not {manifest.next_offset}"
    if (earliest, latest) != (manifest.time_min_ms, manifest.time_max_ms):
        return manifest.first_offset, "its times are not those stated"
    return None


def _fault(manifest: SegmentManifest, name: str, kind: FaultKind, detail: str, offset: int) -> Fault:
    return Fault(name, kind, detail, manifest.topic, manifest.partition, offset)
