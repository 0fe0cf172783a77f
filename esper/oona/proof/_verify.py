"""The walk over a log that proves it, or names what is wrong with it. Pure: records and evidence in, a verdict out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from esper.leyline import SIGNATURE_HEADER, BadRecord, Record, mac_of
from esper.leyline.records import signature_of
from esper.oona._cluster import Position
from esper.oona.proof._chain import Chains
from esper.oona.proof._evidence import Evidence, Link, boundary_after, boundary_before
from esper.oona.proof._findings import Finding, Findings, Kind, kind_of
from esper.oona.proof._judge import Judge
from esper.oona.proof._log import Bounds, Span
from esper.oona.proof._walk import Mismatch, SignedWalk

#: An interval whose first fault was named already says nothing new where it ends.
_NOWHERE: Final = -1


@dataclass(frozen=True)
class Request:
    """What of the log is to be proved; `start` and `end` are offsets of every partition of `topic`, or of all."""

    topic: str | None = None
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class PartitionVerdict:
    """What the walk over one partition showed."""

    topic: str
    partition: int
    start: int
    end: int
    records: int
    #: Records that agree with a signed checkpoint.
    covered: int
    #: Producers whose first link was taken as it is, because the record that it names was not read.
    taken_on_trust: int


def plan_spans(bounds: Mapping[Position, Bounds], evidence: Evidence, request: Request) -> dict[Position, Span]:
    """Return what must be read: the range asked for, widened to the signed places around it."""
    wanted = {place: found for place, found in bounds.items() if request.topic in (None, place[0])}
    return {place: _span(found, evidence, place, request) for place, found in wanted.items()}


def _span(found: Bounds, evidence: Evidence, place: Position, request: Request) -> Span:
    signed = evidence.boundaries.get(place, [])
    start, end = found.low, found.high
    if request.start is not None and request.start > found.low:
        wanted = min(request.start, found.high)
        before = boundary_before(signed, wanted, low=found.low)
        start = found.low if before is None else before
    if request.end is not None and request.end < found.high:
        wanted = max(request.end, start)
        after = boundary_after(signed, wanted)
        end = wanted if after is None or after > found.high else after
    return Span(start, end)


class PartitionCheck:
    """The walk over one partition; takes its records in the order in which they are read."""

    def __init__(
        self, place: Position, span: Span, bounds: Bounds, *, evidence: Evidence, judge: Judge, findings: Findings
    ) -> None:
        self._topic, self._partition = place
        self._span = span
        self._judge = judge
        self._findings = findings
        self._to_the_end = span.end >= bounds.high
        self._chains = Chains(*place, from_first_record=span.start == 0)
        self._links: Mapping[int, Link] = evidence.links.get(place, {})
        boundaries = evidence.boundaries.get(place, [])
        replaced = next((one for one in boundaries if one.topic_id != bounds.topic_id), None)
        # A log that ends too early must still be held against what was signed of its lost end.
        reach = max((one.next_offset for one in boundaries), default=0) if self._to_the_end else span.end
        self._walk = SignedWalk([] if replaced else boundaries, start=span.start, end=reach)
        self._next = span.start
        self._records = 0
        self._last_fault = _NOWHERE
        if replaced:
            what = f"the topic has id {bounds.topic_id}, checkpoint {replaced.number} signed topic {replaced.topic_id}"
            self._add(0, Kind.REPLACED, what)
        elif bounds.keeps_all and bounds.low > 0 and span.start == bounds.low:
            self._add(0, Kind.TRUNCATED, f"the topic keeps everything, but its first {bounds.low} records are gone")

    def take(self, record: Record) -> None:
        """Judge the next record."""
        offset = record.offset
        if offset != self._next:
            self._add_misplaced(offset)
        if offset >= self._walk.next_signed:
            self._cross(offset)
        self._walk.take(record)
        if offset >= self._next:
            self._next = offset + 1
        self._records += 1
        if self._links and offset in self._links:
            self._check_link(record, self._links[offset])
        try:
            meta = self._judge(record)
        except BadRecord as bad:
            self._add(offset, kind_of(bad.reason), bad.detail)
            return
        finding = self._chains.judge(meta, mac_of(signature_of(record)), offset)
        if finding is not None:
            self._add_finding(finding)

    def finish(self) -> PartitionVerdict:
        """Judge the partition's end, once all its records were taken."""
        self._cross(self._next)
        lost = self._walk.beyond(self._next)
        if lost is not None:
            what = f"checkpoint {lost.number} signed records up to offset {lost.next_offset - 1}, which are gone"
            self._add(self._next, Kind.TRUNCATED, what)
        elif self._next < self._span.end:
            self._add(self._next, Kind.GAP, f"there is no record from here to offset {self._span.end - 1}")
        if self._to_the_end:
            for offset, link in self._links.items():
                if offset >= self._next:
                    what = f"the last acknowledged record of {link.producer_id} stood at offset {offset}"
                    self._add(self._next, Kind.TRUNCATED, what)
        return PartitionVerdict(
            self._topic,
            self._partition,
            self._span.start,
            self._span.end,
            self._records,
            self._walk.covered,
            self._chains.taken_on_trust,
        )

    def _cross(self, offset: int) -> None:
        for mismatch in self._walk.cross(offset):
            self._add_mismatch(mismatch)

    def _add_mismatch(self, mismatch: Mismatch) -> None:
        if self._last_fault >= mismatch.start:
            return
        end, number = mismatch.boundary.next_offset, mismatch.boundary.number
        what = f"records {mismatch.start} to {end - 1} are not, or not all, those that checkpoint {number} signed"
        self._add(mismatch.start, Kind.CHECKPOINT, what)

    def _add_misplaced(self, offset: int) -> None:
        if offset > self._next:
            self._add(self._next, Kind.GAP, f"there is no record from here to offset {offset - 1}")
        else:
            self._add(offset, Kind.REORDER, f"it stands after offset {self._next - 1}")

    def _check_link(self, record: Record, link: Link) -> None:
        signature = record.header(SIGNATURE_HEADER)
        if signature is None or mac_of(signature) != link.mac:
            what = f"the last acknowledged record of {link.producer_id} stood here, another one does"
            self._add(record.offset, Kind.FOREIGN, what)

    def _add(self, offset: int, kind: Kind, detail: str) -> None:
        self._add_finding(Finding(self._topic, self._partition, offset, kind, detail))

    def _add_finding(self, finding: Finding) -> None:
        finding.proven_to = min(self._walk.proven_to, finding.offset)
        self._last_fault = max(self._last_fault, finding.offset)
        self._findings.add(finding)


def check_partitions(
    records: Iterable[Record],
    spans: Mapping[Position, Span],
    bounds: Mapping[Position, Bounds],
    *,
    evidence: Evidence,
    judge: Judge,
    findings: Findings,
) -> Sequence[PartitionVerdict]:
    """Walk over the records of several partitions at once, in order of offsets within each."""
    checks = {
        place: PartitionCheck(place, span, bounds[place], evidence=evidence, judge=judge, findings=findings)
        for place, span in spans.items()
    }
    for record in records:
        checks[(record.topic, record.partition)].take(record)
    return [check.finish() for check in checks.values()]
