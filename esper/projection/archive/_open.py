"""The archive of a home, as other parts of Esper meet it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from esper.core._log_key import log_public_key, open_log_key
from esper.core.errors import SecretError
from esper.core.home import Home
from esper.oona import Position
from esper.projection.archive._layout import Layout
from esper.projection.archive._log import KafkaSealable
from esper.projection.archive._marks import ArchiveMarks
from esper.projection.archive._models import Codec
from esper.projection.archive._seal import SEGMENT_BYTES, Sealer
from esper.projection.archive._source import SpanningSource
from esper.projection.archive._survey import Survey, survey
from esper.projection.records._source import RecordSource

if TYPE_CHECKING:
    from esper.oona import Fabric

_log = logging.getLogger("esper.projection.archive")


def archive_of(home: Home) -> Layout:
    """Return where the archive of a home lies; whether there is one is another question."""
    return Layout(home.root / "archive")


def public_key_of(home: Home) -> bytes:
    """Return the public log key that a home's archive is checked with.

    Raises:
        SecretError: the home has none.
    """
    key = log_public_key(home.root)
    if key is None:
        raise SecretError(
            f"no archive can be checked with home {home.root}",
            cause="it holds no log-key.pub",
            next_step="Put log-key.pub of the home that sealed it into this home, or give it by --public-key",
        )
    return key


@contextmanager
def sealing(
    fabric: Fabric, layout: Layout, *, codec: Codec = "null", segment_bytes: int = SEGMENT_BYTES
) -> Iterator[Sealer]:
    """Return what seals the log of a fabric's cluster with the home's log key, which is made where there is none."""
    log = KafkaSealable(fabric)
    try:
        yield Sealer(
            log,
            layout,
            key=open_log_key(fabric.home.root),
            catalog=fabric.topics,
            blobs=fabric.home.blobs,
            codec=codec,
            segment_bytes=segment_bytes,
        )
    finally:
        log.close()


def spanning(fabric: Fabric, live: RecordSource, *, cold: bool = False, root: Path | None = None) -> RecordSource:
    """Return `live` with the sealed past before it; `live` itself where the home has no archive.

    With `cold` everything sealed is read from the segments, also what the live log still holds.

    Raises:
        IntegrityError: the archive is not what was sealed, and the live log alone does not reach as far back.
    """
    layout = archive_of(fabric.home) if root is None else Layout(root)
    public_key = log_public_key(fabric.home.root)
    if public_key is None or not any(layout.seals.glob("*.json")):
        return live
    found = survey(layout, public_key=public_key)
    if found.faults:
        if cold or _is_needed(found, live):
            found.check()
        _log.error("the archive %s is not what was sealed; it is not needed now: `esper archive verify`", layout.root)
        return live
    return SpanningSource(live, found, cold=cold)


def _is_needed(found: Survey, live: RecordSource) -> bool:
    sealed = found.partitions
    return any(place in sealed and one.low > sealed[place].first_offset for place, one in live.state().items())


def archived_marks(fabric: Fabric) -> Callable[[], Mapping[Position, int]]:
    """Return what tells the housekeeper how far the archive holds the partitions of topics that expire."""
    topics = frozenset(spec.name for spec in fabric.topics if spec.expires)
    marks = ArchiveMarks(archive_of(fabric.home).root, public_key=public_key_of(fabric.home))
    return lambda: marks.of(topics)
