"""Proving an archive, or naming what is wrong with it; on request, holding the live log against it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Final

from esper.core.principals import ADMIN
from esper.oona import Cluster, Position, TopicCatalog
from esper.oona.copying import RawReader, ends_of, topic_ids
from esper.projection.archive._check import check_segment
from esper.projection.archive._layout import Layout
from esper.projection.archive._segments import Segment, read_segment
from esper.projection.archive._survey import Fault, FaultKind, Survey, survey

_CLAIMS: Final = (
    "seals: each was signed with the log key and follows the one before it",
    "segments: every one that a seal names is there, joins its neighbours, and holds byte for byte what was sealed, "
    "every record at its offset and every gap where it was",
    "blobs: each that a record names is what its SHA-256 says",
)
_NOT_CLAIMED: Final = (
    "that the log was genuine when it was sealed: forged records are archived as they stood; `esper verify` judges "
    "the log, and the log that `restore` makes of an archive",
    "that the last seals were not taken away together with all that they name; compare the last seal's number and "
    "digest with a copy kept elsewhere, or the archive with the live log (--live)",
)


@dataclass
class LiveComparison:
    """How much of the live log was compared, and whose topics are not there any more."""

    records: int = 0
    partitions: int = 0
    absent: list[str] = field(default_factory=list)


@dataclass
class ArchiveVerdict:
    """What was proved of an archive, and what is wrong with it."""

    found: Survey
    faults: list[Fault]
    live: LiveComparison | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def document(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        found = self.found
        manifests = [one.manifest for segments in found.segments.values() for one in segments]
        last = found.seals[-1] if found.seals else None
        return {
            "archive": str(found.layout.root),
            "ok": self.ok,
            "seals": len(found.seals),
            "last_seal": {"number": last.number, "digest": found.seal_digests[last.number]} if last else None,
            "segments": len(manifests),
            "unsealed": sum(len(segments) for segments in found.unsealed.values()),
            "records": sum(one.records for one in manifests),
            "bytes": sum(one.bytes for one in manifests),
            "blobs": len({digest for one in manifests for digest in one.blobs}),
            "live": None if self.live is None else vars(self.live),
            "bad": [one.document() for one in self.faults],
            "first_bad": self.faults[0].document() if self.faults else None,
            "claims": list(_CLAIMS),
            "not_claimed": list(_NOT_CLAIMED),
        }


def verify_archive(layout: Layout, *, public_key: bytes) -> ArchiveVerdict:
    """Read everything that an archive holds and judge it; needs no broker and no secret.

    Never raises for what it holds: whatever is wrong is in the verdict.
    """
    found = survey(layout, public_key=public_key)
    faults = list(found.faults)
    named = {(one.topic, one.partition, one.offset) for one in faults}
    for segment in _all_segments(found):
        faults += [
            fault
            for fault in check_segment(segment, layout)
            if fault.kind is FaultKind.BLOB or (fault.topic, fault.partition, fault.offset) not in named
        ]
    return ArchiveVerdict(found, faults)


def compare_with_live(verdict: ArchiveVerdict, cluster: Cluster, catalog: TopicCatalog) -> None:
    """Hold the live log against the archive where both hold the same offsets, and note in the verdict what differs.

    Raises:
        BrokerUnavailable: no broker answered.
    """
    cluster = cluster.as_principal(ADMIN)
    verdict.live = comparison = LiveComparison()
    ends = ends_of(cluster, catalog)
    ids = topic_ids(cluster, sorted({topic for topic, _ in ends}))
    with RawReader(cluster) as reader:
        for place, segments in sorted(verdict.found.segments.items()):
            if place not in ends or not segments:
                comparison.absent.append(f"{place[0]}-{place[1]}")
                continue
            stated = segments[-1].manifest.topic_id
            if not verdict.found.leads(place, stated, ids[place[0]]):
                detail = f"the live topic has id {ids[place[0]]}, sealed was {stated}: it was deleted and made again"
                verdict.faults.append(
                    Fault("live log", FaultKind.LIVE, detail, *place, segments[0].manifest.first_offset)
                )
                continue
            comparison.partitions += 1
            counted, fault = compare_partition(reader, place, segments, *ends[place])
            comparison.records += counted
            if fault is not None:
                verdict.faults.append(fault)


def compare_partition(
    reader: RawReader, place: Position, segments: Sequence[Segment], low: int, high: int
) -> tuple[int, Fault | None]:
    """Return how many records of the archive equal the live ones, up to the first that does not.

    Keys, values, headers, times and offsets are compared. Whether a time is the broker's or the producer's is not:
    a restored log holds the broker's old times as producers' times.
    """
    first, end = segments[0].manifest.first_offset, segments[-1].manifest.next_offset
    if high < end:
        detail = f"it is sealed up to offset {end - 1}, the live log ends at {high}: its end was cut off"
        return 0, Fault("live log", FaultKind.LIVE, detail, *place, high)
    start = max(first, low)
    live = (raw.record for raw in reader.read(place, start, end))
    sealed = (
        record
        for segment in segments
        if segment.manifest.next_offset > start
        for record in read_segment(segment, start)
    )
    count = 0
    for mine, theirs in zip_longest(sealed, live):
        if mine != theirs:
            offset = min(one.offset for one in (mine, theirs) if one is not None)
            detail = f"the live log holds another record at offset {offset}, or none, or one that was not there"
            return count, Fault("live log", FaultKind.LIVE, detail, *place, offset)
        count += 1
    return count, None


def _all_segments(found: Survey) -> Iterator[Segment]:
    for group in (found.segments, found.unsealed):
        for _, segments in sorted(group.items()):
            yield from segments


def list_archive(found: Survey) -> dict[str, Any]:
    """Return what an archive holds, by seal and by partition, as plain data."""
    return {
        "archive": str(found.layout.root),
        "seals": [
            {
                "number": seal.number,
                "sealed_ms": seal.sealed_ms,
                "cluster_id": seal.cluster_id,
                "complete": seal.complete,
                "segments": len(seal.segments),
                "groups": len(seal.groups),
            }
            for seal in found.seals
        ],
        "partitions": [_row(found, place) for place in sorted(found.partitions)],
    }


def _row(found: Survey, place: Position) -> dict[str, Any]:
    stated = found.partitions[place]
    manifests = [one.manifest for one in found.segments.get(place, [])]
    return {
        "topic": place[0],
        "partition": place[1],
        "topic_id": stated.topic_id,
        "first_offset": stated.first_offset,
        "next_offset": stated.next_offset,
        "segments": len(manifests),
        "records": sum(one.records for one in manifests),
        "missing": sum(one.missing for one in manifests),
        "bytes": sum(one.bytes for one in manifests),
    }
