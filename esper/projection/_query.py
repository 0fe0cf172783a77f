"""SQL over all projections, whoever holds their files at the moment."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol, TypeVar

import pyarrow as pa

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.errors import Busy
from esper.core.home import Home
from esper.core.rng import jitter
from esper.core.settings import Settings, load_settings
from esper.oona import Fabric, TopicCatalog
from esper.projection._control import ProjectorClient, ProjectorGone, find_projector
from esper.projection._definition import load_definitions
from esper.projection._folder import ProjectionFolder
from esper.projection._projections import ReadableProjections
from esper.projection._rebuild import catch_up

_T = TypeVar("_T")
#: A projector that starts or ends holds the files for about a second without answering.
_HANDOVER_SECONDS: Final = 20.0
_RETRY_SECONDS: Final = 0.1


class Query(Protocol):
    """Answers one reading statement."""

    def __call__(self, sql: str, parameters: Sequence[object] = ()) -> pa.Table:
        """Return what `sql` gives; `parameters` fill its `?` in their order."""


def query(sql: str, parameters: Sequence[object] = (), *, settings: Settings | None = None) -> pa.Table:
    """Return what one SELECT over all projections gives.

    Tables and views of every projection are named without it: `select * from field_reports limit 5`. The
    projector answers when one runs; otherwise the files are opened here, read-only, as they were left.

    Raises:
        UsageError: the statement is no single SELECT (or EXPLAIN of one), or DuckDB finds an error in it.
        OperationFailed: it ran longer than `sql_timeout_seconds`, or needed more memory or gave more than is allowed.
        NotReadyError: there is no home, or no projection was built yet.
        Busy: another process held the files for long.
        IntegrityError: a projection file is damaged.
    """
    chosen = settings or load_settings()
    home = Home.open(chosen)

    def ask(client: ProjectorClient) -> pa.Table:
        return client.query(sql, parameters, seconds=chosen.sql_timeout_seconds)

    def read(projections: ReadableProjections) -> pa.Table:
        return projections.query(sql, parameters)

    return through_projector_or_files(home, chosen, ask=ask, read=read)


def through_projector_or_files(
    home: Home,
    settings: Settings,
    *,
    ask: Callable[[ProjectorClient], _T],
    read: Callable[[ReadableProjections], _T],
) -> _T:
    """Ask the projector, or read the files when none runs; try again while one takes over from the other."""
    deadline = Deadline(_HANDOVER_SECONDS)
    while True:  # ends with an answer, or at the deadline
        client = find_projector(home)
        try:
            return ask(client) if client is not None else _read_files(home, settings, read)
        except (ProjectorGone, Busy):
            if deadline.expired:
                raise
        SYSTEM_CLOCK.sleep(jitter(_RETRY_SECONDS))


def _read_files(home: Home, settings: Settings, read: Callable[[ReadableProjections], _T]) -> _T:
    definitions = load_definitions(settings, TopicCatalog.load(settings))
    projections = ReadableProjections(ProjectionFolder(home.projections), definitions, settings)
    try:
        return read(projections)
    finally:
        projections.close()


@contextmanager
def fresh_query(fabric: Fabric) -> Iterator[Query]:
    """Fold everything that the log holds now, then give a `query` over it; raises as `catch_up`."""
    catch_up(fabric)
    yield functools.partial(query, settings=fabric.settings)
