"""The sealed past of a home's log, for those who may not need one: without an archive nothing of it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from esper.core.home import Home
from esper.oona import Position

if TYPE_CHECKING:
    from esper.oona import Fabric
    from esper.projection.records._source import RecordSource


def has_archive(home: Home) -> bool:
    """Return whether anything was ever sealed in a home."""
    return any((home.root / "archive" / "seals").glob("*.json"))


def log_source(fabric: Fabric, topics: Sequence[str], *, cold: bool = False) -> RecordSource:
    """Return the cluster's log of some topics, with its sealed past before it where the home has an archive.

    With `cold` everything that is sealed is read from the archive, also what the live log still holds.

    Raises:
        IntegrityError: the archive is needed, and is not what was sealed.
    """
    from esper.projection.records._source import KafkaSource

    live = KafkaSource(fabric, topics)
    if not has_archive(fabric.home):
        return live
    from esper.projection.archive import spanning

    return spanning(fabric, live, cold=cold)


def sealed_marks(fabric: Fabric) -> Callable[[], Mapping[Position, int]]:
    """Return what tells up to which offset a home's archive holds the partitions of topics that expire."""
    known: list[Callable[[], Mapping[Position, int]]] = []

    def marks() -> Mapping[Position, int]:
        if not has_archive(fabric.home):
            return {}
        if not known:
            from esper.projection.archive import archived_marks

            known.append(archived_marks(fabric))
        return known[0]()

    return marks
