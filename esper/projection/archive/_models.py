"""What the archive says of itself: of one segment, and of all of them at one moment."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from esper.oona import Position
from esper.projection.archive._documents import SEAL_DOMAIN, SEGMENT_DOMAIN, BadDocument, open_document

SEGMENT_FORMAT: Final = "esper-archive-segment-v1"
SEAL_FORMAT: Final = "esper-archive-seal-v1"

Count = Annotated[int, Field(ge=0, lt=2**63)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
#: Also the name of a folder.
Topic = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,63}$")]
Codec = Literal["null", "deflate"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SegmentManifest(_Model):
    """One Avro file: the records of a partition from `first_offset` to before `next_offset`."""

    format: Literal["esper-archive-segment-v1"] = SEGMENT_FORMAT
    topic: Topic
    topic_id: str
    cluster_id: str
    partition: Count
    first_offset: Count
    next_offset: Count
    records: Count
    #: Append times of the earliest and latest record, milliseconds since 1970; 0 where there is none.
    time_min_ms: int
    time_max_ms: int
    #: Ranges of offsets that held no record when it was sealed, from the first to before the second.
    gaps: tuple[tuple[Count, Count], ...] = ()
    #: Leader epochs, each with the first offset that it took.
    leader_epochs: tuple[tuple[Count, Count], ...] = ()
    #: Records whose headers the client cannot read (a name that is not UTF-8); they are archived without.
    headers_unknown: tuple[Count, ...] = ()
    #: Digests of blobs that the records name, and that those name.
    blobs: tuple[Digest, ...] = ()
    codec: Codec
    bytes: Count
    sha256: Digest

    @property
    def place(self) -> Position:
        """Topic and partition."""
        return self.topic, self.partition

    @property
    def missing(self) -> int:
        """How many of its offsets hold no record."""
        return sum(end - start for start, end in self.gaps)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        ordered = [self.first_offset, *(offset for gap in self.gaps for offset in gap), self.next_offset]
        if ordered != sorted(ordered) or self.first_offset >= self.next_offset:
            raise ValueError("its offsets are not in order")
        if self.records + self.missing != self.next_offset - self.first_offset:
            raise ValueError("its records and gaps do not add up to its range")
        return self


class SegmentEntry(_Model):
    """A segment as a seal names it: by the digest of its manifest."""

    topic: Topic
    partition: Count
    first_offset: Count
    next_offset: Count
    manifest: Digest

    @property
    def place(self) -> Position:
        """Topic and partition."""
        return self.topic, self.partition


class SealedPartition(_Model):
    """How far a partition is sealed."""

    topic: Topic
    partition: Count
    topic_id: str
    first_offset: Count
    next_offset: Count

    @property
    def place(self) -> Position:
        """Topic and partition."""
        return self.topic, self.partition


class SealedOffset(_Model):
    """Where a group read on in a partition, and what it had stored with that."""

    topic: Topic
    partition: Count
    offset: Count
    metadata: str


class SealedGroup(_Model):
    """The committed offsets of one group, read before the ends of the partitions."""

    group: str
    offsets: tuple[SealedOffset, ...]


class Seal(_Model):
    """One moment of the log: its new segments, the state of all partitions and groups, and the seal before it."""

    format: Literal["esper-archive-seal-v1"] = SEAL_FORMAT
    number: Annotated[int, Field(ge=1)]
    #: SHA-256 of the seal before; empty for the first.
    previous: Digest | Literal[""]
    cluster_id: str
    sealed_ms: Count
    #: Whether every topic of the catalogue was sealed at this moment, so that the log can be restored from it.
    complete: bool
    segments: tuple[SegmentEntry, ...]
    partitions: tuple[SealedPartition, ...]
    groups: tuple[SealedGroup, ...]


def open_manifest(raw: bytes, *, public_key: bytes) -> SegmentManifest:
    """Return the manifest that `public_key` signed; raises BadDocument."""
    try:
        return SegmentManifest.model_validate_json(open_document(raw, SEGMENT_DOMAIN, public_key=public_key))
    except ValidationError as error:
        raise BadDocument(f"what it says makes no sense: {error.errors()[0]['msg']}") from error


def open_seal(raw: bytes, *, public_key: bytes) -> Seal:
    """Return the seal that `public_key` signed; raises BadDocument."""
    try:
        return Seal.model_validate_json(open_document(raw, SEAL_DOMAIN, public_key=public_key))
    except ValidationError as error:
        raise BadDocument(f"what it says makes no sense: {error.errors()[0]['msg']}") from error
