"""Segments: the records of one range of one partition in an Avro object container file (Avro 1.11 specification)."""

from __future__ import annotations

import hashlib
import io
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import fastavro

from esper.core.errors import IntegrityError
from esper.core.ids import digests_in
from esper.leyline import Record, RecordColumns
from esper.oona import Position
from esper.oona.copying import RawRecord
from esper.projection.archive._decode import decode_block, decode_columns
from esper.projection.archive._models import Codec, SegmentManifest

#: What a reader without Esper needs to read a segment; the file's own header holds it too.
SCHEMA: Final = fastavro.parse_schema(
    {
        "type": "record",
        "name": "Record",
        "namespace": "esper.archive",
        "doc": "One Kafka record. timestamp_type: 1 the producer's time, 2 the broker's.",
        "fields": [
            {"name": "offset", "type": "long"},
            {"name": "timestamp", "type": "long"},
            {"name": "timestamp_type", "type": "int"},
            {"name": "key", "type": ["null", "bytes"]},
            {"name": "value", "type": ["null", "bytes"]},
            {
                "name": "headers",
                "type": {
                    "type": "array",
                    "items": {
                        "type": "record",
                        "name": "Header",
                        "fields": [
                            {"name": "name", "type": "string"},
                            {"name": "value", "type": ["null", "bytes"]},
                        ],
                    },
                },
            },
        ],
    }
)
#: Large blocks read fastest; one holds a few hundred records.
_BLOCK_BYTES: Final = 256 * 1024


@dataclass(frozen=True)
class Segment:
    """A sealed range: its manifest, the manifest's digest, and where its file lies."""

    manifest: SegmentManifest
    manifest_digest: str
    path: Path


@dataclass
class _Tally:
    """What is noted of records while they are written."""

    next_offset: int
    records: int = 0
    content_bytes: int = 0
    time_min_ms: int = 0
    time_max_ms: int = 0
    gaps: list[tuple[int, int]] = field(default_factory=list)
    leader_epochs: list[tuple[int, int]] = field(default_factory=list)
    headers_unknown: list[int] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def take(self, raw: RawRecord) -> None:
        record = raw.record
        self.skip_to(record.offset)
        self.next_offset = record.offset + 1
        time = record.append_time_ms
        self.time_min_ms = min(self.time_min_ms, time) if self.records else time
        self.time_max_ms = max(self.time_max_ms, time) if self.records else time
        self.records += 1
        self.content_bytes += len(record.key or b"") + len(record.value or b"")
        epoch = raw.leader_epoch
        if epoch is not None and (not self.leader_epochs or self.leader_epochs[-1][0] != epoch):
            self.leader_epochs.append((epoch, record.offset))
        if not raw.headers_known:
            self.headers_unknown.append(record.offset)
        self.names |= digests_in(record.value or b"")

    def skip_to(self, offset: int) -> None:
        if offset > self.next_offset:
            self.gaps.append((self.next_offset, offset))
            self.next_offset = offset


@dataclass(frozen=True)
class Written:
    """A segment's file before anything vouches for it: what is known of its content, and digests that it names."""

    tally: _Tally
    bytes: int
    sha256: str

    @property
    def names(self) -> set[str]:
        """Every SHA-256 that a record names, of a blob or of anything else."""
        return self.tally.names

    @property
    def next_offset(self) -> int:
        """Where the next segment begins."""
        return self.tally.next_offset


def write_segment(
    file: IO[bytes],
    raws: Iterator[RawRecord],
    *,
    first: int,
    end: int,
    bytes_max: int,
    codec: Codec,
) -> Written:
    """Write records from `raws` until they end or reach `bytes_max`; the latter leaves the rest in the iterator."""
    tally = _Tally(first)

    def rows() -> Iterator[dict[str, Any]]:
        for raw in raws:
            tally.take(raw)
            yield _row(raw)
            if tally.content_bytes >= bytes_max and tally.next_offset < end:
                return
        tally.skip_to(end)

    hashing: Any = _Hashing(file)
    fastavro.writer(hashing, SCHEMA, rows(), codec=codec, sync_interval=_BLOCK_BYTES)
    return Written(tally, hashing.bytes, hashing.digest.hexdigest())


class _Hashing(io.RawIOBase):
    """A file that is hashed while it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self.bytes = 0
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        """Return that it is."""
        return True

    def write(self, content: bytes) -> int:  # type: ignore[override]  # fastavro writes bytes
        """Write and hash."""
        self.digest.update(content)
        self.bytes += len(content)
        self._file.write(content)
        return len(content)

    def flush(self) -> None:
        """Pass on."""
        self._file.flush()


def _row(raw: RawRecord) -> dict[str, Any]:
    record = raw.record
    return {
        "offset": record.offset,
        "timestamp": record.append_time_ms,
        "timestamp_type": raw.timestamp_type,
        "key": record.key,
        "value": record.value,
        "headers": [{"name": name, "value": value} for name, value in record.headers],
    }


def manifest_of(
    written: Written, *, place: Position, first: int, topic_id: str, cluster_id: str, blobs: Iterable[str], codec: Codec
) -> SegmentManifest:
    """Return what is to be signed of a segment."""
    tally = written.tally
    return SegmentManifest(
        topic=place[0],
        partition=place[1],
        topic_id=topic_id,
        cluster_id=cluster_id,
        first_offset=first,
        next_offset=tally.next_offset,
        records=tally.records,
        time_min_ms=tally.time_min_ms,
        time_max_ms=tally.time_max_ms,
        gaps=tuple(tally.gaps),
        leader_epochs=tuple(tally.leader_epochs),
        headers_unknown=tuple(tally.headers_unknown),
        blobs=tuple(sorted(blobs)),
        codec=codec,
        bytes=written.bytes,
        sha256=written.sha256,
    )


def is_intact(segment: Segment) -> bool:
    """Return whether a segment's file is there and is what its manifest says."""
    try:
        if segment.path.stat().st_size != segment.manifest.bytes:
            return False
        with segment.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == segment.manifest.sha256
    except FileNotFoundError:
        return False


def read_segment(segment: Segment, start: int = 0) -> Iterator[Record]:
    """Yield the records of a segment from offset `start` on, once its file was seen to be what was sealed.

    Raises:
        IntegrityError: it is not.
    """
    for record, _ in _decoded(segment):
        if record.offset >= start:
            yield record


def read_segment_columns(segment: Segment, start: int = 0) -> Iterator[RecordColumns]:
    """Yield what `read_segment` does, a block at a time."""
    topic, partition = segment.manifest.place
    for content, count in _blocks(segment):
        columns = decode_columns(content, count, topic=topic, partition=partition)
        if columns.offset[-1] >= start:
            yield columns[bisect_left(columns.offset, start) :]


def read_raw_segment(segment: Segment) -> Iterator[RawRecord]:
    """Yield the records of a segment with their time's type; raises as `read_segment`."""
    for record, kind in _decoded(segment):
        yield RawRecord(record, kind, None)


def _decoded(segment: Segment) -> Iterator[tuple[Record, int]]:
    topic, partition = segment.manifest.place
    for content, count in _blocks(segment):
        yield from decode_block(content, count, topic=topic, partition=partition)


def _blocks(segment: Segment) -> Iterator[tuple[bytes, int]]:
    """Yield each block's content and how many records it has, once the file was seen to be what was sealed."""
    if not is_intact(segment):
        raise IntegrityError(
            f"segment {segment.path} cannot be read",
            cause="it is missing, or not what was sealed",
            next_step="`esper archive verify` names what is wrong; put it back from a copy",
        )
    with segment.path.open("rb") as file:
        blocks: Any = fastavro.block_reader(file)  # Its stubs lack a block's bytes.
        for block in blocks:
            if block.num_records:
                yield block.bytes_.getvalue(), block.num_records
