"""Checkpoints of the log: what one signs, how it is made and opened, and the fold of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from google.protobuf.message import DecodeError

from esper.core._log_key import LogKey, signature_holds
from esper.leyline import Record, full_name
from esper.leyline import messages as ly
from esper.oona._cluster import Position
from esper.oona.proof._digest import DIGEST_BYTES

DOMAIN: Final = b"esper-log-checkpoint-v1"
CHECKPOINT_TYPE: Final = full_name("LogCheckpoint")
#: The topic that holds the checkpoints, and its one partition.
OPERATIONS: Final[Position] = ("operations", 0)


class BadCheckpoint(Exception):
    """A checkpoint that must not be believed; the text says why."""


@dataclass(frozen=True)
class Covered:
    """What a checkpoint says of one partition: `digest` is over all its records before `next_offset`."""

    topic_id: str
    first_offset: int
    next_offset: int
    digest: bytes


def content_digest(content: bytes) -> bytes:
    """Return what the next checkpoint names as the digest of this one."""
    return hashlib.sha256(content).digest()


def make_checkpoint(
    key: LogKey, *, number: int, previous_digest: bytes, cluster_id: str, covered: Mapping[Position, Covered]
) -> ly.LogCheckpoint:
    """Return the signed checkpoint `number`, with the partitions in the order of their names."""
    partitions = [
        ly.PartitionCheckpoint(
            topic=topic,
            topic_id=one.topic_id,
            partition=partition,
            first_offset=one.first_offset,
            next_offset=one.next_offset,
            records=one.next_offset - one.first_offset,
            digest=one.digest,
        )
        for (topic, partition), one in sorted(covered.items())
    ]
    content = ly.LogCheckpointContent(
        number=number, previous_digest=previous_digest, cluster_id=cluster_id, partitions=partitions
    ).SerializeToString(deterministic=True)
    return ly.LogCheckpoint(content=content, signature=key.sign(DOMAIN, content), public_key=key.public_key)


def open_content(content: bytes, signature: bytes, *, public_key: bytes) -> ly.LogCheckpointContent:
    """Return the content that `public_key` signed.

    Raises:
        BadCheckpoint: the signature does not hold, or the content says what no writer says.
    """
    if not signature_holds(public_key, domain=DOMAIN, content=content, signature=signature):
        raise BadCheckpoint("its signature was not made with the log key")
    try:
        parsed = ly.LogCheckpointContent.FromString(content)
    except DecodeError as error:
        raise BadCheckpoint("its content is not a LogCheckpointContent") from error
    for one in parsed.partitions:
        if len(one.digest) != DIGEST_BYTES or not 0 <= one.first_offset < one.next_offset:
            raise BadCheckpoint(f"what it says of {one.topic}-{one.partition} makes no sense")
    return parsed


def open_checkpoint(record: Record, *, public_key: bytes) -> tuple[ly.LogCheckpoint, ly.LogCheckpointContent]:
    """Return the checkpoint that a record holds; whether the record's own signature holds is not looked at.

    Raises:
        BadCheckpoint: it is none that the log key signed.
    """
    try:
        message = ly.LogCheckpoint.FromString(record.value or b"")
    except DecodeError as error:
        raise BadCheckpoint("it does not decode as a LogCheckpoint") from error
    return message, open_content(message.content, message.signature, public_key=public_key)


class CheckpointFold:
    """What all checkpoints so far say, folded in the order of their offsets.

    Of two with the same number the first counts: a writer that was killed may have left one on its way while its
    successor wrote the same number. Both were signed, and both say the truth.
    """

    def __init__(self) -> None:
        self.number = 0
        self.digest = b""
        self.covered: dict[Position, Covered] = {}

    def take(self, raw: bytes, content: ly.LogCheckpointContent) -> str:
        """Take the next checkpoint in; return in words what is missing before it, or nothing."""
        if content.number <= self.number:
            return ""
        problem = ""
        if content.number != self.number + 1:
            missing = f"{self.number + 1} to {content.number - 1}"
            problem = f"checkpoints {missing} are missing before number {content.number}"
        elif content.previous_digest != self.digest:
            problem = f"checkpoint {content.number} follows another number {self.number} than the one that is there"
        self.number, self.digest = content.number, content_digest(raw)
        for one in content.partitions:
            self.covered[(one.topic, one.partition)] = covered_of(one)
        return problem


def renamed(covered: Covered, leads: Callable[[str, int], str]) -> Covered:
    """Return what is said of a partition under the id of the topic that holds its records since a restore."""
    return replace(covered, topic_id=leads(covered.topic_id, covered.next_offset))


def covered_of(one: ly.PartitionCheckpoint) -> Covered:
    """Return what a checkpoint says of a partition, without the message around it."""
    return Covered(one.topic_id, one.first_offset, one.next_offset, one.digest)
