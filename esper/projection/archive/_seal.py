"""Sealing: what the log holds beyond the last seal becomes segments, and a new seal names them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from esper.core._log_key import LogKey
from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import IntegrityError
from esper.oona import Position, TopicCatalog
from esper.oona.copying import GroupOffsets, RawRecord
from esper.projection.archive._blobs import copy_blobs, named_blobs
from esper.projection.archive._check import check_segment
from esper.projection.archive._documents import SEAL_DOMAIN, SEGMENT_DOMAIN, digest_of, sign_document
from esper.projection.archive._layout import Layout, whole_file, write_whole
from esper.projection.archive._log import OPERATIONS, Look, SealableLog
from esper.projection.archive._models import (
    Codec,
    Seal,
    SealedGroup,
    SealedOffset,
    SealedPartition,
    SegmentEntry,
    SegmentManifest,
)
from esper.projection.archive._segments import Segment, manifest_of, write_segment
from esper.projection.archive._survey import Survey, survey

_log = logging.getLogger("esper.projection.archive")

#: What a reader must hash before it may believe the first record of a segment.
SEGMENT_BYTES: Final = 128 * 1024 * 1024

#: Called with the partition and the number of its records that were sealed so far.
Report = Callable[[Position, int], None]


@dataclass
class Sealed:
    """What a seal added."""

    number: int
    segments: int = 0
    records: int = 0
    bytes: int = 0
    blobs: int = 0
    groups: int = 0
    complete: bool = False
    new: bool = True
    #: Topics of the cluster that no topic file names: nothing of them is sealed.
    unknown_topics: Sequence[str] = ()


@dataclass
class _Plan:
    """What is to be sealed."""

    look: Look
    #: From where to before where each partition is read, and where its next segment begins.
    spans: dict[Position, tuple[int, int, int]] = field(default_factory=dict)


class Sealer:
    """Writes the segments and the seals of one archive; the log may be in use."""

    def __init__(
        self,
        log: SealableLog,
        layout: Layout,
        *,
        key: LogKey,
        catalog: TopicCatalog,
        blobs: Path,
        codec: Codec = "null",
        segment_bytes: int = SEGMENT_BYTES,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Seal `log` with `key`; `blobs` is the store in which its records' blobs lie."""
        self._log = log
        self._layout = layout
        self._key = key
        self._catalog = catalog
        self._store = blobs
        self._codec: Codec = codec
        self._segment_bytes = segment_bytes
        self._clock = clock

    def seal(self, topics: Sequence[str] = (), *, report: Report | None = None) -> Sealed:
        """Seal what these topics, or all, hold by now; a log of which nothing is new gets no new seal.

        Raises:
            IntegrityError: the archive is not what was sealed, or the log is not the one that was.
            Busy: another process writes the archive.
            SettingsError: it cannot be written.
            BrokerUnavailable: no broker answered.
        """
        chosen = [self._catalog[name].name for name in topics] or [spec.name for spec in self._catalog]
        with self._layout.writing():
            known = survey(self._layout, public_key=self._key.public_key)
            known.check()
            for path in known.leftovers:
                path.unlink()
            adopted = self._adopt(known)
            plan = self._plan(chosen, known)
            result = Sealed(
                len(known.seals) + 1,
                groups=len(plan.look.groups),
                complete=not topics,
                unknown_topics=plan.look.unknown_topics,
            )
            written = [one for place in _in_order(plan.spans) for one in self._partition(place, plan, result, report)]
            return self._close(known, plan, [*adopted, *written], result)

    def _adopt(self, known: Survey) -> list[Segment]:
        """Return what a seal that was killed has left, once it was seen to be whole."""
        adopted = [one for found in known.unsealed.values() for one in found]
        for segment in adopted:
            faults = check_segment(segment, self._layout)
            if faults:
                raise IntegrityError(
                    f"segment {segment.path} cannot be sealed",
                    cause=faults[0].detail,
                    next_step="No seal names it yet: remove it with its manifest, and its records are sealed anew",
                )
        return adopted

    def _plan(self, topics: Sequence[str], known: Survey) -> _Plan:
        look = self._log.look(topics)
        plan = _Plan(look)
        for place, (low, high) in look.ends.items():
            plan.spans[place] = self._span(place, known, look.ids[place[0]], low, high)
        return plan

    def _span(self, place: Position, known: Survey, live_id: str, low: int, high: int) -> tuple[int, int, int]:
        stated = known.partitions.get(place)
        left = known.unsealed.get(place, [])
        if stated is None and not left:
            return low, high, low
        topic_id = left[-1].manifest.topic_id if left else stated.topic_id if stated else ""
        first = left[-1].manifest.next_offset if left else stated.next_offset if stated else low
        name, truth = f"{place[0]}-{place[1]}", self._catalog[place[0]].truth
        if not known.leads(place, topic_id, live_id):
            raise _foreign(name, f"the topic's id is {live_id}, sealed was {topic_id}: it was deleted and made again")
        if high < first:
            raise _foreign(name, f"it is sealed up to offset {first}, the log ends at {high}: its end was cut off")
        if low > first and truth:
            raise _foreign(name, f"records {first} to {low - 1} were deleted before they were sealed")
        return max(low, first), high, first

    def _partition(self, place: Position, plan: _Plan, result: Sealed, report: Report | None) -> Iterator[Segment]:
        start, end, first = plan.spans[place]
        raws = self._log.read(place, start, end) if start < end else iter(())
        done = 0
        while first < end:  # ends: every segment reaches further
            segment = self._segment(raws, place, first, end, plan.look)
            first = segment.manifest.next_offset
            done += segment.manifest.records
            result.segments += 1
            result.records += segment.manifest.records
            result.bytes += segment.manifest.bytes
            result.blobs += len(segment.manifest.blobs)
            if report is not None:
                report(place, done)
            yield segment

    def _segment(self, raws: Iterator[RawRecord], place: Position, first: int, end: int, look: Look) -> Segment:
        """Write one segment, then its blobs, then its manifest: what has a manifest is whole."""
        longest = self._layout.segment(place, first, end)
        with whole_file(longest, named=lambda: self._layout.segment(place, first, written.next_offset)) as file:
            written = write_segment(file, raws, first=first, end=end, bytes_max=self._segment_bytes, codec=self._codec)
        path = self._layout.segment(place, first, written.next_offset)
        blobs = named_blobs(written.names, self._store)
        copy_blobs(blobs, self._store, self._layout.blobs)
        manifest = manifest_of(
            written,
            place=place,
            first=first,
            topic_id=look.ids[place[0]],
            cluster_id=look.cluster_id,
            blobs=blobs,
            codec=self._codec,
        )
        raw = sign_document(self._key, SEGMENT_DOMAIN, _plain(manifest))
        write_whole(path.with_suffix(".json"), raw)
        segment = Segment(manifest, digest_of(raw), path)
        faults = check_segment(segment, self._layout)
        if faults:
            raise IntegrityError(
                f"segment {path} was not written as it was read", cause=faults[0].detail, next_step="Check the disk"
            )
        return segment

    def _close(self, known: Survey, plan: _Plan, segments: Sequence[Segment], result: Sealed) -> Sealed:
        partitions = dict(known.partitions)
        for place, (_, end, first) in plan.spans.items():
            begun = min([first, *(one.manifest.first_offset for one in segments if one.manifest.place == place)])
            if place in partitions:
                begun = partitions[place].first_offset
            partitions[place] = SealedPartition(
                topic=place[0],
                partition=place[1],
                topic_id=plan.look.ids[place[0]],
                first_offset=begun,
                next_offset=end,
            )
        for segment in segments:  # of topics that a killed seal was given, and this one is not
            one = segment.manifest
            if one.place not in plan.spans:
                before = partitions.get(one.place)
                partitions[one.place] = SealedPartition(
                    topic=one.topic,
                    partition=one.partition,
                    topic_id=one.topic_id,
                    first_offset=before.first_offset if before else one.first_offset,
                    next_offset=one.next_offset,
                )
        seal = Seal(
            number=result.number,
            previous=known.seal_digests.get(result.number - 1, ""),
            cluster_id=plan.look.cluster_id,
            sealed_ms=self._clock.now_ns() // 1_000_000,
            complete=result.complete,
            segments=tuple(_entry(one) for one in segments),
            partitions=tuple(partitions[place] for place in sorted(partitions)),
            groups=_sealed_groups(plan.look.groups),
        )
        if known.seals and _says_nothing_new(known.seals[-1], seal):
            result.number, result.new = known.seals[-1].number, False
            return result
        write_whole(self._layout.seal(seal.number), sign_document(self._key, SEAL_DOMAIN, _plain(seal)))
        _log.info("seal %d: %d segments, %d records", seal.number, len(segments), result.records)
        return result


def _in_order(spans: Mapping[Position, object]) -> list[Position]:
    return sorted(spans, key=lambda place: (place[0] == OPERATIONS, place))


def _plain(model: SegmentManifest | Seal) -> dict[str, object]:
    return model.model_dump(mode="json")


def _entry(segment: Segment) -> SegmentEntry:
    one = segment.manifest
    return SegmentEntry(
        topic=one.topic,
        partition=one.partition,
        first_offset=one.first_offset,
        next_offset=one.next_offset,
        manifest=segment.manifest_digest,
    )


def _sealed_groups(groups: GroupOffsets) -> tuple[SealedGroup, ...]:
    return tuple(
        SealedGroup(
            group=group,
            offsets=tuple(
                SealedOffset(topic=place[0], partition=place[1], offset=one.offset, metadata=one.metadata)
                for place, one in sorted(offsets.items())
            ),
        )
        for group, offsets in sorted(groups.items())
    )


def _says_nothing_new(last: Seal, seal: Seal) -> bool:
    return (
        not seal.segments
        and (last.partitions, last.groups, last.cluster_id) == (seal.partitions, seal.groups, seal.cluster_id)
        and (last.complete or not seal.complete)
    )


def _foreign(name: str, cause: str) -> IntegrityError:
    return IntegrityError(
        f"{name} cannot be sealed on",
        cause=cause,
        next_step="Restore the log, or seal what is there into another folder (--archive)",
    )
