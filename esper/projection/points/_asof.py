"""Points of the log as people write them: offsets, a time, an event, or now.

The state of all projections at a point is given by one offset for each partition: the records below it count. As
text that is `topic:partition=offset,partition=offset;topic:...`, for instance `runs:0=12,1=7;decisions:0=5`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Final

from esper.core.errors import UsageError
from esper.oona import Position

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NOW: Final = "now"
_TOPIC: Final = r"[A-Za-z0-9._-]{1,249}:[0-9]{1,9}=[0-9]{1,18}(?:,[0-9]{1,9}=[0-9]{1,18})*"
_OFFSETS: Final = re.compile(rf"{_TOPIC}(?:;{_TOPIC})*")
_EVENT_ID: Final = re.compile(r"[^\s:;=]{1,200}")
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}")
_UTC: Final = re.compile(r"\s+UTC$", re.IGNORECASE)
_NEXT_STEP: Final = "Give a time such as 2026-11-22T12:00:00Z, an event id, offsets such as runs:0=12,1=7, or now"


@dataclass(frozen=True)
class AtTime:
    """Every record whose append time is not after `moment` counts."""

    moment: datetime

    @property
    def microseconds(self) -> int:
        """The moment in microseconds since 1970."""
        return (self.moment - _EPOCH) // timedelta(microseconds=1)


@dataclass(frozen=True)
class AtEvent:
    """Right after an event: its partition counts up to it, the others up to its append time."""

    event_id: str


@dataclass(frozen=True)
class AtOffsets:
    """In each partition the records below its offset count."""

    offsets: Mapping[Position, int]


@dataclass(frozen=True)
class Now:
    """All that is folded counts."""


Point = AtTime | AtEvent | AtOffsets | Now
#: What callers may give: text, a time with its zone, or offsets by topic and partition.
AsOf = str | datetime | Mapping[Position, int]


def parse_point(given: AsOf) -> Point:
    """Return the point that was asked for.

    Raises:
        UsageError: it is none, or a time that does not say its zone.
    """
    if isinstance(given, datetime):
        return _at_time(given, given.isoformat())
    if isinstance(given, Mapping):
        return AtOffsets(dict(given))
    if not isinstance(given, str):
        raise UsageError(f"{given!r} is no point of the log", cause="it is no text", next_step=_NEXT_STEP)
    text = given.strip()
    if text.lower() == _NOW:
        return Now()
    if _OFFSETS.fullmatch(text):
        return AtOffsets(parse_offsets(text))
    moment = _moment(text)
    if moment is not None:
        return _at_time(moment, text)
    if _DATE.match(text) or not _EVENT_ID.fullmatch(text):
        raise UsageError(f"{given!r} is no point of the log", cause="it cannot be read", next_step=_NEXT_STEP)
    return AtEvent(text)


def parse_offsets(text: str) -> dict[Position, int]:
    """Return the offsets that a text of the form above names; raises UsageError for any other text."""
    if not _OFFSETS.fullmatch(text):
        raise UsageError(f"{text!r} is no point of the log", cause="it cannot be read as offsets", next_step=_NEXT_STEP)
    offsets: dict[Position, int] = {}
    for part in text.split(";"):
        topic, _, pairs = part.partition(":")
        for pair in pairs.split(","):
            partition, _, offset = pair.partition("=")
            place = (topic, int(partition))
            if place in offsets:
                raise UsageError(
                    f"{text!r} is no point of the log",
                    cause=f"it names {topic}:{partition} twice",
                    next_step=_NEXT_STEP,
                )
            offsets[place] = int(offset)
    return offsets


def offsets_text(offsets: Mapping[Position, int]) -> str:
    """Return offsets as one text, which `parse_offsets` takes back."""
    topics = groupby(sorted(offsets.items()), key=lambda item: item[0][0])
    return ";".join(
        f"{topic}:" + ",".join(f"{partition}={offset}" for (_, partition), offset in items) for topic, items in topics
    )


def point_text(point: Point) -> str:
    """Return a point as text, which `parse_point` takes back."""
    match point:
        case AtTime(moment):
            return moment.astimezone(UTC).isoformat()
        case AtEvent(event_id):
            return event_id
        case AtOffsets(offsets):
            return offsets_text(offsets)
        case Now():
            return _NOW


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(_UTC.sub("+00:00", text))
    except ValueError:
        return None


def _at_time(moment: datetime, text: str) -> AtTime:
    if moment.tzinfo is None:
        raise UsageError(
            f"the time {text} is ambiguous",
            cause="it does not say its zone",
            next_step=f"Write {text}Z for UTC, or its offset from UTC such as {text}+01:00"
            if "T" in text or " " in text
            else f"Write the time of day too, and its zone: {text}T00:00:00Z",
        )
    return AtTime(moment)
