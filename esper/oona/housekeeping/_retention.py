"""Retention: what a topic's file lets go, less what somebody still needs; decided first, deleted second.

Kafka's own retention deletes by age and size alone, whoever still needs what it deletes. So no topic has one
(`retention.ms=-1`), and the housekeeper deletes by offset: up to what the file's time to live and size allow, never
past a need, and it says which need held it back.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confluent_kafka import TopicPartition

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import EsperError
from esper.core.principals import ADMIN
from esper.leyline import Record
from esper.oona._cluster import Position
from esper.oona._failures import answer_of
from esper.oona._kafka_admin import OffsetSpec
from esper.oona.housekeeping._metrics import group_positions
from esper.oona.topics._specs import KEEP, TopicSpec

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric

_logger = logging.getLogger("esper.oona.retention")

_REQUEST_SECONDS: Final = 10.0
#: Kafka's answer where no record is as young as was asked.
_NONE_SINCE: Final = -1
#: Where a partition's record size is looked at: so many places, so many records at each.
_SAMPLES: Final = 8
_SAMPLE_RECORDS: Final = 20
_SAMPLE_SECONDS: Final = 2.0
#: Kafka's own bytes around a record of a batch (KIP-98: lengths, deltas, attributes), rounded up.
_RECORD_OVERHEAD_BYTES: Final = 24


@dataclass(frozen=True)
class Need:
    """Somebody who needs the records of a partition from `offset` on."""

    holder: str
    offset: int
    why: str


@dataclass(frozen=True)
class Holding:
    """What a partition holds, and from which offset on its file would keep it."""

    place: Position
    low: int
    high: int
    #: The first record that is younger than the time to live; `low` where there is none to expire.
    young_from: int
    #: The first record that fits into the size; `low` where all do.
    fits_from: int


@dataclass(frozen=True)
class RetentionDecision:
    """What is to be deleted of one partition: the records from `low` to before `delete_before`."""

    place: Position
    low: int
    #: What the topic's file lets go.
    wanted_before: int
    #: What really goes; equals `low` when nothing does.
    delete_before: int
    #: Who holds the rest back, the one with the lowest offset first; empty when nobody does.
    held_by: tuple[Need, ...] = ()

    @property
    def held_records(self) -> int:
        """How many records stay although the file would let them go."""
        return self.wanted_before - self.delete_before

    @property
    def reason(self) -> str:
        """Why they stay, in one sentence; empty when none does."""
        if not self.held_by:
            return ""
        needs = "; ".join(f"{need.holder} needs offset {need.offset} on ({need.why})" for need in self.held_by)
        return f"{self.place[0]}-{self.place[1]}: {self.held_records} expired records stay: {needs}"


def decide_retention(spec: TopicSpec, holding: Holding, needs: Iterable[Need]) -> RetentionDecision:
    """Return what may be deleted of a partition; pure.

    A truth topic loses nothing, whatever its file says. Elsewhere everything before `young_from` or `fits_from`
    goes, but nothing at or after the lowest offset that somebody needs.
    """
    wanted = holding.low if spec.truth else max(holding.low, holding.young_from, holding.fits_from)
    wanted = min(wanted, holding.high)
    holders = sorted((need for need in needs if need.offset < wanted), key=lambda need: (need.offset, need.holder))
    floor = min((need.offset for need in holders), default=wanted)
    delete_before = max(holding.low, min(wanted, floor))
    return RetentionDecision(
        holding.place, holding.low, wanted, delete_before, tuple(holders) if delete_before < wanted else ()
    )


def needs_of_groups(positions: Mapping[str, Mapping[Position, int]], place: Position) -> list[Need]:
    """Return what the consumer groups have yet to read of a partition; pure."""
    return [
        Need(group, held[place], "it has not read further")
        for group, held in sorted(positions.items())
        if place in held
    ]


def needs_of_projections(rebuilt_from: Collection[str], place: Position, *, archived: int, low: int) -> list[Need]:
    """Return what projections need of a partition: they are rebuilt from all that no archive holds; pure.

    `archived` is the offset before which the archive holds everything, 0 without an archive.
    """
    if place[0] not in rebuilt_from:
        return []
    return [Need("projection", max(low, archived), "projections are rebuilt from what no archive holds")]


def needs_of_archive(archived: Mapping[Position, int], place: Position) -> list[Need]:
    """Return what the archive needs of a partition: what it has not sealed, once it has sealed any of it; pure."""
    return [Need("archive", archived[place], "no sound segment holds more")] if place in archived else []


def plan_retention(
    fabric: Fabric,
    *,
    rebuilt_from: Collection[str] = (),
    archived: Mapping[Position, int] | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> list[RetentionDecision]:
    """Return what is to be deleted of every topic that expires; deletes nothing.

    `rebuilt_from` names the topics that projections are made from, `archived` how far an archive holds each
    partition for certain; of a partition that it names nothing goes that it does not hold.

    Raises:
        BrokerUnavailable: no broker answered.
        EsperError: the cluster refused to tell.
    """
    specs = [spec for spec in fabric.topics if spec.expires]
    if not specs:
        return []
    positions = group_positions(fabric.cluster, fabric.topics)
    marks = archived or {}
    decisions = []
    for spec in specs:
        for place, holding in _holdings(fabric, spec, clock=clock).items():
            needs = [
                *needs_of_groups(positions, place),
                *needs_of_projections(rebuilt_from, place, archived=marks.get(place, 0), low=holding.low),
                *needs_of_archive(marks, place),
            ]
            decisions.append(decide_retention(spec, holding, needs))
    return decisions


def apply_retention(fabric: Fabric, decisions: Sequence[RetentionDecision]) -> None:
    """Delete what was decided, and log what was not and why.

    Raises:
        EsperError: the broker refused to delete; what was deleted before stays deleted.
    """
    for decision in decisions:
        if decision.reason:
            _logger.warning("%s", decision.reason)
    due = [
        TopicPartition(*decision.place, decision.delete_before)
        for decision in decisions
        if decision.delete_before > decision.low
    ]
    if not due:
        return
    # Kafka's DELETE covers whole topics too, so no subsystem is granted it: on the home's secure broker it is admin's.
    admin = fabric.cluster.as_principal(ADMIN).admin
    futures = admin.delete_records(due, request_timeout=_REQUEST_SECONDS)
    for place, future in futures.items():
        answer_of(future, f"expired records of {place.topic}-{place.partition} cannot be deleted")
        _logger.info("%s-%d: records before offset %d were deleted", place.topic, place.partition, place.offset)


def _holdings(fabric: Fabric, spec: TopicSpec, *, clock: Clock) -> dict[Position, Holding]:
    places = fabric.topics.partitions(spec.name)
    ends = fabric.cluster.watermarks(places)
    young = (
        _first_since(fabric, places, clock.now_ns() // 1_000_000 - spec.retention_ms) if spec.retention_ms > 0 else {}
    )
    found = {}
    for place in places:
        low, high = ends[place]
        fits_from = low
        if spec.retention_bytes != KEEP and high > low:
            fits_from = first_that_fits(
                low, high, bytes_max=spec.retention_bytes, record_bytes=_mean_record_bytes(fabric, place, low, high)
            )
        # No record since then: all of them are older.
        since = young.get(place, low)
        found[place] = Holding(place, low, high, high if since < 0 else since, fits_from)
    return found


def first_that_fits(low: int, high: int, *, bytes_max: int, record_bytes: float) -> int:
    """Return the first offset such that the records from it to `high` fit into `bytes_max`; pure."""
    return max(low, high - int(bytes_max / max(record_bytes, 1.0)))


def _first_since(fabric: Fabric, places: Sequence[Position], since_ms: int) -> dict[Position, int]:
    """Return the first offset appended at or after a time; -1 where there is none, and nothing for what is unknown."""
    spec: OffsetSpec = OffsetSpec.for_timestamp(max(0, since_ms))
    asked = {TopicPartition(*place): spec for place in places}
    futures = fabric.cluster.admin.list_offsets(asked, request_timeout=_REQUEST_SECONDS)
    what = "the age of records cannot be asked"
    found = {(place.topic, place.partition): answer_of(future, what).offset for place, future in futures.items()}
    # librdkafka may answer -1001 right after a restart of the broker: an age that is not known has expired nothing.
    return {place: offset for place, offset in found.items() if offset >= _NONE_SINCE}


def _mean_record_bytes(fabric: Fabric, place: Position, low: int, high: int) -> float:
    """Estimate the size of a record from evenly spread ones: Kafka's protocol for log sizes has no Python client."""
    step = max(1, (high - low) // _SAMPLES)
    sizes: list[int] = []
    for offset in range(low, high, step):
        try:
            with fabric.reader({place: offset}) as reader:
                sizes += [_size(record) for record in reader.read_raw(_SAMPLE_SECONDS, _SAMPLE_RECORDS)]
        except EsperError as error:
            _logger.info("%s-%d: no sample at offset %d: %s", *place, offset, error)
    return sum(sizes) / len(sizes) if sizes else float(_RECORD_OVERHEAD_BYTES)


def _size(record: Record) -> int:
    headers = sum(len(name) + len(value or b"") for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers + _RECORD_OVERHEAD_BYTES
