"""What `operations` says about the rest of the log: boundaries that were signed, and ends of dead producers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from google.protobuf.message import DecodeError

from esper.leyline import TYPE_HEADER, BadRecord, Record, full_name
from esper.leyline import messages as ly
from esper.oona._cluster import Position
from esper.oona.proof._checkpoint import CHECKPOINT_TYPE, BadCheckpoint, CheckpointFold, open_checkpoint
from esper.oona.proof._findings import Finding, Kind
from esper.oona.proof._judge import Judge
from esper.oona.proof._restored import RESTORED_TYPE, Bridges, bridges_of, open_restored

_STARTED_TYPE: Final = full_name("ProducerStarted")


@dataclass(frozen=True, slots=True)
class Boundary:
    """A place in a partition up to which a checkpoint signed every record."""

    first_offset: int
    next_offset: int
    digest: bytes
    number: int
    topic_id: str


@dataclass(frozen=True, slots=True)
class Link:
    """The last record that a dead producer had acknowledged on a partition."""

    producer_id: str
    sequence: int
    mac: bytes


@dataclass
class Evidence:
    """What is known of the log before it is read."""

    #: In order of `next_offset`.
    boundaries: dict[Position, list[Boundary]] = field(default_factory=dict)
    links: dict[Position, dict[int, Link]] = field(default_factory=dict)
    problems: list[Finding] = field(default_factory=list)
    checkpoints: int = 0
    #: How often the log was written again from its archive, as the log key signed.
    restores: int = 0
    #: Checkpoints that could not be judged because no public key was given.
    unjudged: int = 0
    last_number: int = 0
    last_digest: bytes = b""


def gather_evidence(operations: Iterable[Record], *, public_key: bytes | None, judge: Judge) -> Evidence:
    """Return what the records of `operations`, in order of offsets, say about the log.

    A checkpoint counts when the log key signed it, whatever became of the record around it: the holder of a signing
    secret can spoil a record, but not what the log key says. Links count when their record is authentic.
    """
    evidence, fold = Evidence(), CheckpointFold()
    for record in operations:
        type_name = (record.header(TYPE_HEADER) or b"").decode(errors="replace")
        if type_name == CHECKPOINT_TYPE:
            _take_checkpoint(record, public_key, fold, evidence)
        elif type_name == RESTORED_TYPE:
            _take_restored(record, public_key, evidence)
        elif type_name == _STARTED_TYPE:
            _take_links(record, judge, evidence)
    evidence.last_number, evidence.last_digest = fold.number, fold.digest
    for boundaries in evidence.boundaries.values():
        boundaries.sort(key=lambda one: (one.next_offset, one.number))
    return evidence


def _take_checkpoint(record: Record, public_key: bytes | None, fold: CheckpointFold, evidence: Evidence) -> None:
    if public_key is None:
        evidence.unjudged += 1
        return
    try:
        message, content = open_checkpoint(record, public_key=public_key)
    except BadCheckpoint as bad:
        evidence.problems.append(_problem(record, f"the checkpoint here must not be believed: {bad}"))
        return
    evidence.checkpoints += 1
    problem = fold.take(message.content, content)
    if problem:
        evidence.problems.append(_problem(record, problem))
    add_boundaries(evidence.boundaries, content)


def _take_restored(record: Record, public_key: bytes | None, evidence: Evidence) -> None:
    if public_key is None:
        evidence.unjudged += 1
        return
    try:
        _, content = open_restored(record, public_key=public_key)
    except BadCheckpoint as bad:
        evidence.problems.append(_problem(record, f"the restore here must not be believed: {bad}"))
        return
    evidence.restores += 1
    cross_bridges(evidence.boundaries, bridges_of(content.partitions))


def cross_bridges(boundaries: dict[Position, list[Boundary]], bridges: Bridges) -> None:
    """Let what was signed so far of topics that were sealed speak of those that hold their records since."""
    for place in boundaries.keys() & bridges.keys():
        leads = bridges[place].leads
        boundaries[place] = [replace(one, topic_id=leads(one.topic_id, one.next_offset)) for one in boundaries[place]]


def add_boundaries(boundaries: dict[Position, list[Boundary]], content: ly.LogCheckpointContent) -> None:
    """Append what a checkpoint signed to the boundaries of its partitions."""
    for one in content.partitions:
        boundary = Boundary(one.first_offset, one.next_offset, one.digest, content.number, one.topic_id)
        boundaries.setdefault((one.topic, one.partition), []).append(boundary)


def _take_links(record: Record, judge: Judge, evidence: Evidence) -> None:
    try:
        meta = judge(record)
        started = ly.ProducerStarted.FromString(record.value or b"")
    except (BadRecord, DecodeError):
        return  # The walk over the log names it.
    if started.predecessor_id.partition(":")[0] != meta.source:
        return  # Only a source's own successor knows what it had acknowledged.
    for link in started.links:
        found = Link(started.predecessor_id, link.sequence, link.mac)
        evidence.links.setdefault((link.topic, link.partition), {})[link.offset] = found


def _problem(record: Record, detail: str) -> Finding:
    return Finding(record.topic, record.partition, record.offset, Kind.CHECKPOINT, detail)


def boundary_before(boundaries: Iterable[Boundary], offset: int, *, low: int) -> int | None:
    """Return the last signed place that is not after `offset` nor before `low`."""
    found = [one.next_offset for one in boundaries if low <= one.next_offset <= offset]
    return max(found, default=None)


def boundary_after(boundaries: Iterable[Boundary], offset: int) -> int | None:
    """Return the first signed place that is not before `offset`."""
    return min((one.next_offset for one in boundaries if one.next_offset >= offset), default=None)


def last_boundaries(boundaries: Mapping[Position, list[Boundary]]) -> dict[Position, int]:
    """Return for each partition the place up to which it is signed."""
    return {place: found[-1].next_offset for place, found in boundaries.items() if found}
