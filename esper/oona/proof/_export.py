"""Making an audit bundle: which records a subject has, between which checkpoints they lie, what they refer to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Final, Protocol

from esper.core._log_key import LogKey
from esper.core.errors import IntegrityError, NotReadyError, UsageError
from esper.leyline import TYPE_HEADER, Record
from esper.leyline import messages as ly
from esper.oona._cluster import Position
from esper.oona.proof._bundle import BLOB_BYTES_MAX, FORMAT, BundleWriter, encode, record_object
from esper.oona.proof._checkpoint import CHECKPOINT_TYPE, OPERATIONS, BadCheckpoint, open_checkpoint
from esper.oona.proof._digest import record_hash
from esper.oona.proof._evidence import Boundary, add_boundaries, boundary_after, boundary_before, cross_bridges
from esper.oona.proof._log import Bounds, RecordLog, Span
from esper.oona.proof._restored import RESTORED_TYPE, bridges_of, open_restored
from esper.oona.proof._searched import Searched, Signed, refuse_lost
from esper.oona.topics._partitioner import partition_for
from esper.oona.topics._specs import TopicCatalog, TopicSpec

#: Topics whose records a run refers to by digest: what it was grown from, and by whom it was steered.
_REFERRED: Final = ("blueprints", "kernel-catalog", "policy")
_DIGEST: Final = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_RANGE: Final = re.compile(r"(?P<topic>[a-z][a-z0-9-]*)-(?P<partition>\d+):(?P<start>\d+)-(?P<end>\d+)")
#: Only small blobs are searched for names of others: manifests are, weights are not.
_SEARCHED_BYTES_MAX: Final = 1024 * 1024


class Blobs(Protocol):
    """Content by its SHA-256, 64 hexadecimal digits."""

    def has(self, digest: str) -> bool:
        """Return whether something lies under `digest`."""

    def get(self, digest: str, *, bytes_max: int) -> bytes:
        """Return it; raise IntegrityError when it is larger, or not what its name says."""


class NotCovered(NotReadyError):
    """No checkpoint covers a record that a bundle is to prove."""


@dataclass(frozen=True)
class Exported:
    """What a bundle holds."""

    records: int
    hidden: int
    blobs: int
    omitted: int
    checkpoints: int


@dataclass
class _Selection:
    """Records to show: from the first to before the last offset of each partition, and which of these."""

    spans: dict[Position, Span] = field(default_factory=dict)
    shows: Callable[[Record], bool] = field(default=lambda _: True)
    #: Digests that the shown records name.
    names: set[str] = field(default_factory=set)
    #: Where records of the subject were looked for; a bundle about a range looks nowhere else.
    searched: list[Position] = field(default_factory=list)

    def widen(self, record: Record) -> None:
        place = (record.topic, record.partition)
        known = self.spans.get(place, Span(record.offset, record.offset))
        self.spans[place] = Span(min(known.start, record.offset), max(known.end, record.offset + 1))
        self.names |= _digests_in(record)


class BundleExport:
    """Writes bundles about one log."""

    def __init__(self, log: RecordLog, *, key: LogKey, cluster_id: str, topics: TopicCatalog, blobs: Blobs) -> None:
        self._log = log
        self._key = key
        self._cluster_id = cluster_id
        self._topics = topics
        self._blobs = blobs

    def run(self, run_id: str, file: IO[bytes]) -> Exported:
        """Write every record of a run, with the kernels, blueprints and policies that they name by digest.

        Raises:
            UsageError: the log holds nothing of that run.
            NotCovered: a record of it lies after the last checkpoint.
            IntegrityError: a partition in which records of it may lie lost some that a checkpoint signed.
        """
        bounds, signed = self._look()
        selection = self._select_run(run_id, bounds, signed)
        if not selection.spans:
            raise UsageError(
                f"there is nothing to export of run {run_id}",
                cause="no record of the log has this key",
                next_step="`esper runs list` names the runs",
            )
        return self._write(file, selection, bounds, signed, {"run_id": run_id})

    def range(self, text: str, file: IO[bytes]) -> Exported:
        """Write the records of a range given as TOPIC-PARTITION:FROM-TO, from FROM to before TO.

        Raises:
            UsageError: it is no range of this log.
            NotCovered: its end lies after the last checkpoint.
            IntegrityError: its partition lost records that a checkpoint signed.
        """
        place, span = _parse_range(text)
        bounds, signed = self._look()
        refuse_lost([place, OPERATIONS], bounds, signed)
        if place not in bounds or not bounds[place].low <= span.start < span.end <= bounds[place].high:
            held = f"it holds {bounds[place].low}-{bounds[place].high}" if place in bounds else "no such partition"
            raise UsageError(f"{text} is no range of this log", cause=held, next_step="Ranges look like runs-3:0-120")

        def shows(record: Record) -> bool:
            return span.start <= record.offset < span.end

        selection = _Selection({place: span}, shows)
        for record in self._log.read({place: span}):
            selection.names |= _digests_in(record)
        return self._write(file, selection, bounds, signed, {"range": text})

    def _look(self) -> tuple[dict[Position, Bounds], Signed]:
        """Return what is signed of the log, and then its ends: no checkpoint speaks of records beyond them."""
        before = self._log.bounds()
        signed: dict[Position, list[Boundary]] = {}
        for _, content in self._statements(before):
            if isinstance(content, ly.LogRestoredContent):
                cross_bridges(signed, bridges_of(content.partitions))
            else:
                add_boundaries(signed, content)
        return {**self._log.bounds(), OPERATIONS: before[OPERATIONS]}, signed

    def _select_run(self, run_id: str, bounds: Mapping[Position, Bounds], signed: Signed) -> _Selection:
        key = run_id.encode()
        kept = [spec for spec in self._topics if _is_searched(spec)]
        places = [(spec.name, partition_for(run_id, spec.partitions)) for spec in kept]
        searched = {*places, *(place for place in bounds if place[0] in _REFERRED)}
        refuse_lost([*searched, OPERATIONS], bounds, signed)
        selection = _Selection(searched=sorted(searched))
        for record in self._log.read(_whole(places, bounds)):
            if record.key == key:
                selection.widen(record)
        referred = self._select_referred(selection, bounds)
        selection.shows = lambda record: (
            record.key == key or (record.topic, record.partition, record.offset) in referred
        )
        return selection

    def _select_referred(self, selection: _Selection, bounds: Mapping[Position, Bounds]) -> set[tuple[str, int, int]]:
        """Add what the run's records name by digest; return where it stands."""
        wanted, referred = frozenset(selection.names), set()
        places = [place for place in bounds if place[0] in _REFERRED]
        for record in self._log.read(_whole(places, bounds)):
            if wanted & _digests_in(record):
                selection.widen(record)
                referred.add((record.topic, record.partition, record.offset))
        return referred

    def _write(
        self,
        file: IO[bytes],
        selection: _Selection,
        bounds: Mapping[Position, Bounds],
        signed: Signed,
        subject: dict[str, str],
    ) -> Exported:
        spans = {
            place: _between_checkpoints(place, span, signed.get(place, []), bounds[place])
            for place, span in sorted(selection.spans.items())
        }
        writer = BundleWriter(file, self._key)
        writer.line(
            {
                "format": FORMAT,
                "cluster_id": self._cluster_id,
                "public_key": self._key.public_key.hex(),
                "subject": subject,
            }
        )
        needed = _needed_checkpoints(spans, selection.searched, signed)
        checkpoints = self._write_checkpoints(writer, needed, bounds)
        shown: dict[Position, int] = {}
        hidden = 0
        for place, span in spans.items():
            shown[place] = self._write_partition(writer, place, span, bounds[place].topic_id, selection.shows)
            hidden += span.end - span.start - shown[place]
        self._write_searched(writer, selection.searched, bounds, shown)
        blobs, omitted = self._write_blobs(writer, selection.names)
        writer.seal()
        return Exported(sum(shown.values()), hidden, blobs, omitted, checkpoints)

    def _statements(
        self, bounds: Mapping[Position, Bounds]
    ) -> Iterator[tuple[ly.LogCheckpoint, ly.LogCheckpointContent] | tuple[ly.LogRestored, ly.LogRestoredContent]]:
        """Yield what the log key signed: checkpoints and restores, as they follow each other."""
        for record in self._log.read(_whole([OPERATIONS], bounds)):
            try:
                if record.header(TYPE_HEADER) == CHECKPOINT_TYPE.encode():
                    yield open_checkpoint(record, public_key=self._key.public_key)
                elif record.header(TYPE_HEADER) == RESTORED_TYPE.encode():
                    yield open_restored(record, public_key=self._key.public_key)
            except BadCheckpoint:
                continue  # `esper verify` names it.

    def _write_checkpoints(self, writer: BundleWriter, needed: set[int], bounds: Mapping[Position, Bounds]) -> int:
        count = 0
        for message, content in self._statements(bounds):
            if isinstance(content, ly.LogRestoredContent):
                writer.line({"restored": encode(message.content), "signature": encode(message.signature)})
            elif content.number in needed:
                writer.line({"checkpoint": encode(message.content), "signature": encode(message.signature)})
                count += 1
        return count

    def _write_searched(
        self,
        writer: BundleWriter,
        searched: list[Position],
        bounds: Mapping[Position, Bounds],
        shown: Mapping[Position, int],
    ) -> None:
        """Say of each partition that was searched how much of it is shown, so that no section can be missing."""
        for place in searched:
            if place in bounds:
                found, partitions = bounds[place], self._topics[place[0]].partitions
                writer.line(Searched(*place, partitions, found.topic_id, found.high, shown.get(place, 0)).line())
        if searched:
            writer.line({"not_searched": sorted(spec.name for spec in self._topics if not _is_searched(spec))})

    def _write_partition(
        self, writer: BundleWriter, place: Position, span: Span, topic_id: str, shows: Callable[[Record], bool]
    ) -> int:
        """Write one partition; return how many of its records are shown."""
        topic, partition = place
        writer.line(
            {
                "partition": {
                    "topic": topic,
                    "partition": partition,
                    "topic_id": topic_id,
                    "start": span.start,
                    "end": span.end,
                }
            }
        )
        shown = 0
        for record in self._log.read({place: span}):
            if shows(record):
                writer.line({"record": record_object(record)})
                shown += 1
            else:
                writer.hidden(record_hash(record))
        return shown

    def _write_blobs(self, writer: BundleWriter, names: set[str]) -> tuple[int, int]:
        """Write the blobs that the store holds of `names`, and those that small ones among them name."""
        written = omitted = 0
        done: set[str] = set()
        queue = sorted(names)
        while queue:  # ends: no name is taken twice, and the store is finite
            name = queue.pop(0)
            if name in done or not self._blobs.has(name):
                continue
            done.add(name)
            try:
                content = self._blobs.get(name, bytes_max=BLOB_BYTES_MAX)
            except IntegrityError:
                writer.line({"omitted": name})
                omitted += 1
                continue
            writer.line({"blob": name, "content": encode(content)})
            written += 1
            if len(content) <= _SEARCHED_BYTES_MAX:
                queue += sorted(found.decode() for found in _DIGEST.findall(content))
        return written, omitted


def _whole(places: list[Position], bounds: Mapping[Position, Bounds]) -> dict[Position, Span]:
    return {place: Span(bounds[place].low, bounds[place].high) for place in places if place in bounds}


def _is_searched(spec: TopicSpec) -> bool:
    """Return whether records of a run may lie in a topic for good."""
    return spec.truth and spec.name != OPERATIONS[0]


def _needed_checkpoints(spans: Mapping[Position, Span], searched: list[Position], signed: Signed) -> set[int]:
    """Return those that sign a place within the spans, their ends included, or the end of what was searched."""
    needed = {
        one.number
        for place, span in spans.items()
        for one in signed[place]
        if span.start <= one.next_offset <= span.end
    }
    ends = (max(signed[place], key=lambda one: one.next_offset) for place in searched if place in signed)
    return needed | {one.number for one in ends}


def _digests_in(record: Record) -> set[str]:
    return {found.decode() for found in _DIGEST.findall(record.value or b"")}


def _parse_range(text: str) -> tuple[Position, Span]:
    match = _RANGE.fullmatch(text)
    if match is None:
        what, cause = f"{text!r} is no range", "it is not TOPIC-PARTITION:FROM-TO"
        raise UsageError(what, cause=cause, next_step="Ranges look like runs-3:0-120")
    return (match["topic"], int(match["partition"])), Span(int(match["start"]), int(match["end"]))


def _between_checkpoints(place: Position, span: Span, signed: list[Boundary], bounds: Bounds) -> Span:
    """Return the span widened to the signed places around it."""
    name = f"{place[0]}-{place[1]}"
    signed = sorted(signed, key=lambda one: one.next_offset)
    before = boundary_before(signed, span.start, low=bounds.low)
    begun = [one.first_offset for one in signed if one.first_offset <= span.start]
    start = before if before is not None else min(begun, default=None)
    end = boundary_after(signed, span.end)
    if start is None or start < bounds.low:
        raise NotCovered(
            f"{name} cannot be proved from offset {span.start} on",
            cause="the records between the checkpoint before it and this offset are gone",
            next_step="Export a range that begins later",
        )
    if end is None or end > bounds.high:
        raise NotCovered(
            f"{name} cannot be proved up to offset {span.end - 1}",
            cause="no checkpoint covers that offset yet",
            next_step="Let the housekeeper run for a moment (`esper serve --only housekeeper`), then try again",
        )
    return Span(start, end)
