"""Where a bundle's exporter looked for its subject: nothing signed may be lost there, and nothing left out unsaid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from esper.core.errors import IntegrityError
from esper.oona._cluster import Position
from esper.oona.proof._bundle import BadBundle, number
from esper.oona.proof._evidence import Boundary
from esper.oona.proof._log import Bounds
from esper.oona.topics._partitioner import partition_for

Signed = Mapping[Position, list[Boundary]]


@dataclass(frozen=True)
class Searched:
    """A partition that was searched for a run from its beginning to before `end`, and how much of it is shown."""

    topic: str
    partition: int
    #: How many partitions the topic has: with the run's key it says where the run lies.
    partitions: int
    topic_id: str
    end: int
    shown: int

    @property
    def place(self) -> Position:
        """Topic and partition."""
        return self.topic, self.partition

    def line(self) -> dict[str, object]:
        """Return it as a bundle states it."""
        return {"searched": asdict(self)}


def searched_of(found: object) -> Searched:
    """Return what a line states; raises BadBundle."""
    if not isinstance(found, dict) or set(found) != {one.name for one in fields(Searched)}:
        raise BadBundle("a line about what was searched is malformed")
    if not isinstance(found["topic"], str) or not isinstance(found["topic_id"], str):
        raise BadBundle("a line about what was searched names no topic")
    counts = {name: number(found[name]) for name in ("partition", "partitions", "end", "shown")}
    if counts["partition"] >= counts["partitions"]:
        raise BadBundle("a line about what was searched names a partition that the topic does not have")
    return Searched(topic=found["topic"], topic_id=found["topic_id"], **counts)


def refuse_lost(places: Iterable[Position], bounds: Mapping[Position, Bounds], signed: Signed) -> None:
    """Refuse to speak about partitions of which the log lost what it should hold.

    `signed` must have been read before `bounds`, or a checkpoint could speak of records that came in between.

    Raises:
        IntegrityError: a partition ends before the highest offset that is signed of it, is another topic's than the
            one that was signed, or keeps everything and yet lost its first records.
    """
    for place in sorted(set(places)):
        problem = _loss(bounds.get(place), signed.get(place, []))
        if problem:
            raise IntegrityError(
                f"{place[0]}-{place[1]} is not what was signed, and a bundle would not show it",
                cause=problem,
                next_step="`esper verify` names everything that is lost; nothing was exported",
            )


def _loss(found: Bounds | None, signed: list[Boundary]) -> str:
    last = max(signed, key=lambda one: one.next_offset, default=None)
    high = found.high if found is not None else 0
    if last is not None and high < last.next_offset:
        return f"it ends before offset {high}, checkpoint {last.number} signed it up to offset {last.next_offset - 1}"
    if found is None:
        return ""
    if last is not None and last.topic_id != found.topic_id:
        return f"its topic has id {found.topic_id}, checkpoint {last.number} signed topic {last.topic_id}"
    if found.keeps_all and found.low > 0:
        return f"its topic keeps everything, but it begins at offset {found.low}: its first records are gone"
    return ""


@dataclass(frozen=True)
class Missing:
    """Something that a bundle about a run should hold; without a place it is about the bundle as a whole."""

    detail: str
    place: Position | None = None


def missing_of(
    run_id: str,
    *,
    searched: Mapping[Position, Searched],
    not_searched: frozenset[str],
    shown: Mapping[Position, int],
    signed: Signed,
) -> Iterator[Missing]:
    """Yield what a bundle about a run lacks of the partitions in which the run lies, or leaves unsaid of them.

    `shown` counts the records of each section, `signed` is what the bundle's own checkpoints say.
    """
    stated: dict[str, set[int]] = {}
    for one in searched.values():
        stated.setdefault(one.topic, set()).add(one.partitions)
    for topic in sorted({topic for topic, _ in signed} - stated.keys() - not_searched):
        yield Missing(f"its checkpoints sign records of {topic}, but it does not say that {topic} was searched")
    for topic, counts in sorted(stated.items()):
        yield from _missing_of_topic(topic, counts, run_id, searched)
    for place, one in sorted(searched.items()):
        yield from _missing_of_place(one, shown.get(place), signed.get(place, []))
    for place in sorted(shown.keys() - searched.keys()):
        yield Missing(f"{place[0]}-{place[1]} is shown, but it does not say that it was searched")
    for topic, partition in sorted(signed):
        if partition >= max(stated.get(topic, {partition + 1})):
            yield Missing(f"{topic} has more partitions than the bundle says: {topic}-{partition} is signed")


def _missing_of_topic(
    topic: str, counts: set[int], run_id: str, searched: Mapping[Position, Searched]
) -> Iterator[Missing]:
    if len(counts) != 1:
        yield Missing(f"it says different numbers of partitions of {topic}")
    for count in counts:
        place = (topic, partition_for(run_id, count))
        if place not in searched:
            yield Missing(f"the run lies in {topic}-{place[1]}, which was not searched", place)


def _missing_of_place(one: Searched, shown: int | None, signed: list[Boundary]) -> Iterator[Missing]:
    name = f"{one.topic}-{one.partition}"
    reach = max((boundary.next_offset for boundary in signed), default=0)
    if one.end < reach:
        yield Missing(f"{name} was searched up to offset {one.end}, but is signed up to {reach}", one.place)
    if any(boundary.topic_id != one.topic_id for boundary in signed):
        yield Missing(f"the topic of {name} that was searched is not the one that was signed")
    if one.shown and shown is None:
        yield Missing(f"{one.shown} records of {name} should be shown, but the whole partition is left out", one.place)
    elif one.shown != (shown or 0):
        yield Missing(f"{one.shown} records of {name} should be shown, not {shown or 0}")


def not_searched_of(found: object) -> frozenset[str]:
    """Return the topics that a line says were not searched; raises BadBundle."""
    if not isinstance(found, list) or not all(isinstance(topic, str) for topic in found):
        raise BadBundle("a line about what was not searched is malformed")
    return frozenset(found)


def limits_of(not_searched: Iterable[str]) -> tuple[str, ...]:
    """Return in words what no search says anything about."""
    names = ", ".join(sorted(not_searched))
    return (f"topics that were not searched for the subject: {names}",) if names else ()


def subject_run(subject: Mapping[str, Any]) -> str | None:
    """Return the run that a bundle is about, None when it is about a range; raises BadBundle."""
    if set(subject) == {"range"}:
        return None
    run_id = subject.get("run_id")
    if set(subject) != {"run_id"} or not isinstance(run_id, str):
        raise BadBundle("the subject is neither a run nor a range")
    try:
        run_id.encode()
    except UnicodeEncodeError as error:
        raise BadBundle("the subject is no run that a key could name") from error
    return run_id
