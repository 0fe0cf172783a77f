"""What a `LogRestored` signs: that topics of this cluster go on, offset for offset, where those of another one ended.

It is a bridge for names alone. What checkpoints signed of the old topic's records is compared with the new topic's
records as before; a restore that wrote anything else is found as any other change is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from esper.core._log_key import LogKey, signature_holds
from esper.leyline import Record, full_name
from esper.leyline import messages as ly
from esper.oona._cluster import Position
from esper.oona.proof._checkpoint import BadCheckpoint

RESTORED_DOMAIN: Final = b"esper-log-restored-v1"
RESTORED_TYPE: Final = full_name("LogRestored")
_DIGEST_BYTES: Final = 32


class BadRestored(BadCheckpoint):
    """A statement of a restore that must not be believed; the text says why."""


@dataclass(frozen=True)
class Bridge:
    """One partition's way from an old topic to the new one that holds its records before `next_offset`."""

    topic_id: str
    new_topic_id: str
    first_offset: int
    next_offset: int

    def leads(self, topic_id: str, next_offset: int) -> str:
        """Return the id of the topic that holds what was signed of `topic_id` before `next_offset`."""
        return self.new_topic_id if topic_id == self.topic_id and next_offset <= self.next_offset else topic_id


Bridges = Mapping[Position, Bridge]


def make_restored(
    key: LogKey,
    *,
    seal: int,
    seal_digest: bytes,
    cluster_id: str,
    new_cluster_id: str,
    records: int,
    bridges: Bridges,
) -> ly.LogRestored:
    """Return the signed statement, with the partitions in the order of their names."""
    content = ly.LogRestoredContent(
        seal=seal,
        seal_digest=seal_digest,
        cluster_id=cluster_id,
        new_cluster_id=new_cluster_id,
        records=records,
        partitions=[
            ly.RestoredPartition(
                topic=topic,
                topic_id=one.topic_id,
                new_topic_id=one.new_topic_id,
                partition=partition,
                first_offset=one.first_offset,
                next_offset=one.next_offset,
            )
            for (topic, partition), one in sorted(bridges.items())
        ],
    ).SerializeToString(deterministic=True)
    return ly.LogRestored(content=content, signature=key.sign(RESTORED_DOMAIN, content), public_key=key.public_key)


def open_restored_content(content: bytes, signature: bytes, *, public_key: bytes) -> ly.LogRestoredContent:
    """Return the content that `public_key` signed.

    Raises:
        BadRestored: the signature does not hold, or the content says what no restore says.
    """
    if not signature_holds(public_key, domain=RESTORED_DOMAIN, content=content, signature=signature):
        raise BadRestored("its signature was not made with the log key")
    try:
        parsed = ly.LogRestoredContent.FromString(content)
    except DecodeError as error:
        raise BadRestored("its content is not a LogRestoredContent") from error
    if len(parsed.seal_digest) != _DIGEST_BYTES:
        raise BadRestored("it names no seal")
    for one in parsed.partitions:
        if not 0 <= one.first_offset <= one.next_offset or not one.topic_id or not one.new_topic_id:
            raise BadRestored(f"what it says of {one.topic}-{one.partition} makes no sense")
    return parsed


def open_restored(record: Record, *, public_key: bytes) -> tuple[ly.LogRestored, ly.LogRestoredContent]:
    """Return the statement that a record holds; whether the record's own signature holds is not looked at.

    Raises:
        BadRestored: it is none that the log key signed.
    """
    try:
        message = ly.LogRestored.FromString(record.value or b"")
    except DecodeError as error:
        raise BadRestored("it does not decode as a LogRestored") from error
    return message, open_restored_content(message.content, message.signature, public_key=public_key)


def bridges_of(partitions: Iterable[ly.RestoredPartition]) -> dict[Position, Bridge]:
    """Return what a statement says of each partition."""
    return {
        (one.topic, one.partition): Bridge(one.topic_id, one.new_topic_id, one.first_offset, one.next_offset)
        for one in partitions
    }
