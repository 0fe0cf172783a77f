"""Experience straight from the log: two offset vectors in, tensors out, the same for the same offsets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from esper.core.errors import NotReadyError
from esper.core.policy import StrangeObservation, layout_of
from esper.leyline import full_name
from esper.leyline import messages as ly
from esper.oona import Fabric, Position
from esper.projection import event_tables, log_source
from esper.simic.experience._columns import DecisionColumns, ReportColumns, decision_columns, report_columns
from esper.simic.experience._episodes import Retention, joined
from esper.simic.experience._registry import Registry, registered
from esper.simic.experience._rewards import MEASURED, RewardWeights
from esper.simic.experience._tensors import experience_of, unregistered
from esper.simic.learning import Experience

TOPICS: Final = ("decisions", "field-reports")
_FIGURES: Final = tuple(f"{name}_{end}" for name in MEASURED for end in ("begin", "end"))
_DECISION, _REPORT = full_name("DecisionMade"), full_name("FieldReport")


@dataclass(frozen=True)
class Reading:
    """How experience is made of the log."""

    weights: RewardWeights = field(default_factory=RewardWeights)
    retention: Retention = field(default_factory=Retention)
    #: Discount of an epoch.
    gamma: float = 1.0
    #: How many processes read and decode.
    processes: int = 1


@dataclass(frozen=True)
class Recorded:
    """Experience, where it came from, and what was left out of it."""

    experience: Experience
    registry: Registry
    ranges: tuple[ly.OffsetRange, ...]
    run_ids: tuple[str, ...]
    #: Episodes that were left out, by reason; `duplicates` counts decisions.
    left_out: Counter[str]


def ranges_until_now(fabric: Fabric, *, since: Mapping[Position, int] | None = None) -> tuple[ly.OffsetRange, ...]:
    """Return all that the topics of experience hold now, or what came after the offsets `since`.

    Raises:
        BrokerUnavailable: no broker answered.
    """
    source = log_source(fabric, TOPICS)
    try:
        state = source.state()
    finally:
        source.close()
    return tuple(
        ly.OffsetRange(
            topic=topic,
            topic_id=one.topic_id,
            partition=partition,
            first_offset=min(max(one.low, (since or {}).get((topic, partition), 0)), one.high),
            end_offset=one.high,
        )
        for (topic, partition), one in sorted(state.items())
    )


def read_experience(
    fabric: Fabric, ranges: Sequence[ly.OffsetRange], reading: Reading, *, registry: Registry | None = None
) -> Recorded:
    """Return the whole episodes that lie within `ranges`, as tensors; the same ranges give the same bits.

    Args:
        fabric: Whose log.
        ranges: Of the topics of experience.
        reading: How.
        registry: What the policy that learns knows already; it is never made smaller, and grows by what is read.

    Raises:
        NotReadyError: a topic is not the one that a range names, the log does not hold the ranges, or no whole episode
            lies within them; the message says what was left out.
        BrokerUnavailable: no broker answered.
    """
    _check_topics(fabric, ranges)
    begins = {(one.topic, one.partition): one.first_offset for one in ranges}
    ends = {(one.topic, one.partition): one.end_offset for one in ranges}
    decisions: list[DecisionColumns] = []
    reports: list[ReportColumns] = []
    strange = 0
    for kind, table in event_tables(fabric, (_DECISION, _REPORT), begins, ends, processes=reading.processes):
        if kind == _REPORT:
            reports.append(report_columns(table, _FIGURES))
            continue
        for part in decision_columns(table):
            known = _is_known(part)
            strange += 0 if known else len(part)
            if known:
                decisions.append(part)
    if not decisions or not reports:
        raise _nothing(Counter({"strange_observation": strange}))
    grown = registered(registry or Registry(), decisions)
    steps = joined(decisions, reports, reading.retention, strange=unregistered(decisions, grown))
    steps.left_out.update({"strange_observation": strange})
    if not len(steps.places):
        raise _nothing(+steps.left_out)
    return Recorded(
        experience=experience_of(decisions, steps, grown, reading.weights, gamma=reading.gamma),
        registry=grown,
        ranges=tuple(ranges),
        run_ids=tuple(steps.run_ids),
        left_out=+steps.left_out,
    )


def _is_known(part: DecisionColumns) -> bool:
    try:
        layout_of(part.names)
    except StrangeObservation:
        return False
    return True


def _check_topics(fabric: Fabric, ranges: Sequence[ly.OffsetRange]) -> None:
    """Refuse ranges of a topic that was deleted and made again: its offsets mean something else."""
    source = log_source(fabric, sorted({one.topic for one in ranges}))
    try:
        ids = source.topic_ids()
    finally:
        source.close()
    for one in ranges:
        if one.topic_id and ids[one.topic] != one.topic_id:
            raise NotReadyError(
                f"topic {one.topic} is not the one that the offsets are of",
                cause=f"its id is {ids[one.topic]}, theirs {one.topic_id}",
                next_step="Restore that log, or name offsets of this one",
            )


def _nothing(left_out: Counter[str]) -> NotReadyError:
    said = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()) if count) or "nothing"
    return NotReadyError(
        "the log holds no whole episode to learn from",
        cause=f"left out: {said}",
        next_step="Collect some with `esper collect --policy random`",
    )
