"""Where a group's member begins in the partitions it is given, and what it knows of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaException, TopicPartition

from esper.core.errors import IntegrityError, NotReadyError
from esper.leyline import BadRecord
from esper.oona._cluster import Position
from esper.oona._events import Gatekeeper
from esper.oona._failures import BrokerWatch

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric

_REQUEST_SECONDS: Final = 5.0
#: One pass over a partition's history when its producers no longer fit the offset's metadata.
_SCAN_SECONDS: Final = 300.0


@dataclass(frozen=True)
class Committed:
    """What a group has stored for one partition; offset None: nothing yet."""

    offset: int | None
    metadata: str = ""


def start_offset(name: str, committed: int | None, *, low: int, high: int, truth: bool) -> int:
    """Return where a group begins in partition `name`, which holds the offsets from `low` to before `high`.

    Raises:
        IntegrityError: records that this group never read are gone from a truth topic, or the log ends
            before the place that the group has reached.
    """
    if committed is not None and committed > high:
        raise IntegrityError(
            f"{name} cannot be read on",
            cause=f"the group has read up to offset {committed}, the log now ends at {high}",
            next_step="The topic was deleted, recreated or restored from an older copy; restore its records",
        )
    if committed is not None and committed >= low:
        return committed
    if truth and low > (committed or 0):
        raise IntegrityError(
            f"{name} cannot be read from its beginning",
            cause=f"its records before offset {low} are gone, though its topic keeps everything",
            next_step="Restore the topic's records, or run `esper topics plan` to see how its retention was changed",
        )
    return low


def committed_offsets(
    consumer: KafkaConsumer, places: Sequence[Position], *, watch: BrokerWatch
) -> dict[Position, Committed]:
    """Return what the consumer's group has stored for each partition.

    Raises:
        BrokerUnavailable: no broker answered within the retry time.
    """
    what, asked = "the group's offsets cannot be read", [TopicPartition(*place) for place in places]

    def ask() -> list[TopicPartition]:
        answer: list[TopicPartition] = consumer.committed(asked, _REQUEST_SECONDS)
        error = next((found.error for found in answer if found.error is not None), None)
        if error is not None:  # Without its offset the group would seem to have read nothing yet.
            raise KafkaException(error)
        return answer

    return {
        (found.topic, found.partition): Committed(
            offset=found.offset if found.offset >= 0 else None, metadata=found.metadata or ""
        )
        for found in watch.retrying(what, ask)
    }


def restore_memory(
    fabric: Fabric, gate: Gatekeeper, place: Position, committed: Committed, *, low: int, start: int
) -> None:
    """Make `gate` remember what the group dealt with in a partition before `start`.

    The stored metadata usually says it all; where it does not, the partition's history is read once.
    """
    high_water = gate.memory.high_water(*place)
    complete = high_water.merge_metadata(committed.metadata)
    if complete or start <= low:
        return
    with fabric.reader({place: low}) as reader:
        seconds = _SCAN_SECONDS
        while reader.positions()[place] < start and seconds > 0:
            records = reader.read_raw(1.0)
            seconds -= 0.0 if records else 1.0
            for record in records:
                if record.offset >= start:
                    break
                try:
                    meta = gate.authenticate(record)
                except BadRecord:
                    continue  # It was set aside when it was first read.
                high_water.advance(meta.producer_id, meta.sequence)
        if reader.positions()[place] < start:
            raise NotReadyError(
                f"the history of {place[0]}-{place[1]} cannot be read",
                cause=f"it did not come up to offset {start}",
                next_step="Try again; the broker's log says more",
            )
