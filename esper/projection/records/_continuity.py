"""Whether the log still is the log that a projection was folded from; if not, nothing may go on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from esper.core.errors import IntegrityError
from esper.oona import TopicCatalog
from esper.projection.records._ledger import Progress
from esper.projection.records._source import LogState

_RESTORE: str = "Point ESPER_KAFKA_BOOTSTRAP at the cluster it was folded from or restore that topic"


def check_topic_ids(name: str, progress: Iterable[Progress], ids: Mapping[str, str]) -> None:
    """Raise IntegrityError when a topic is not the one that projection `name` was folded from."""
    for one in progress:
        if ids.get(one.topic) != one.topic_id:
            raise IntegrityError(
                f"projection {name} cannot go on with topic {one.topic}",
                cause=f"the topic was deleted and made again: its id is {ids.get(one.topic)}, it was {one.topic_id}",
                next_step=f"{_RESTORE}; to begin again with what is there, run `esper replay {name}`",
            )


def check_positions(name: str, progress: Iterable[Progress], state: LogState) -> None:
    """Raise IntegrityError unless the log holds everything from each stored offset on."""
    for one in progress:
        found = state.get(one.place)
        if found is None:
            cause = "the partition is gone"
        elif one.next_offset < found.low:
            cause = f"records {one.next_offset} to {found.low - 1} were deleted before they were folded"
        elif one.next_offset > found.high:
            cause = f"it was folded up to {one.next_offset}, but the log ends at {found.high}: the end was cut off"
        else:
            continue
        raise IntegrityError(
            f"projection {name} cannot go on with partition {one.partition} of topic {one.topic}",
            cause=cause,
            next_step=_RESTORE,
        )


def begin(name: str, topics: Iterable[str], state: LogState, catalog: TopicCatalog) -> list[Progress]:
    """Return where a projection that has read nothing begins.

    Raises:
        IntegrityError: the beginning of a topic that keeps everything is missing.
    """
    wanted = set(topics)
    begun = []
    for (topic, partition), found in sorted(state.items()):
        if topic not in wanted:
            continue
        if found.low > 0 and catalog[topic].truth:
            raise IntegrityError(
                f"projection {name} cannot be built from partition {partition} of topic {topic}",
                cause=f"the topic keeps everything, but its first {found.low} records are gone",
                next_step=_RESTORE,
            )
        begun.append(Progress(topic, partition, found.topic_id, found.low, found.low))
    return begun
